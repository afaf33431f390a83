"""``maskfleet plan``: the number for a deadline, and its reasoning."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from maskfleet.cli.main import main
from maskfleet.jobs.fleet import ClassLoad, FleetRules, ModelLoad, WorkerCounts
from maskfleet.jobs.schema.fleet import ModelFleet
from maskfleet.jobs.schema.spec import Priority
from tests.maskfleet.scripted_server import Answer, ScriptedServer

RULES, NO_WORKERS = FleetRules(), WorkerCounts()


def run(*arguments: str, load: ModelLoad, rules: FleetRules = RULES) -> tuple[Result, str]:
    """Run the command against a server that answers so; return also what it was asked for."""
    body = ModelFleet.of(load, rules).model_dump_json().encode()
    with ScriptedServer(Answer(200, body, {"Content-Type": "application/json"})) as server:
        result = CliRunner().invoke(main, ["plan", *arguments, "--api-url", server.url, "--api-key", "mf_key"])
    return result, server.asked[0].path if server.asked else ""


def a_load(
    queued: int, running: int, job_s: float | None, workers: WorkerCounts = NO_WORKERS, bulk: int = 0
) -> ModelLoad:
    normal = ClassLoad(Priority.NORMAL, queued, running, job_s=job_s)
    return ModelLoad(
        "facebook/sam-vit-base",
        (ClassLoad(Priority.INTERACTIVE), normal, ClassLoad(Priority.BULK, bulk, job_s=30 if bulk else None)),
        workers,
    )


def test_the_number_comes_with_its_reasoning() -> None:
    load = a_load(1200, 4, 3, WorkerCounts(starting=1, ready=4))

    result, asked = run("--deadline", "10m", "--model", "facebook/sam-vit-base", load=load)

    assert result.exit_code == 0, result.output
    assert asked == "/v1/fleet/model?name=facebook%2Fsam-vit-base"
    assert result.output.splitlines() == [
        "facebook/sam-vit-base: 1,200 queued jobs and 4 running.",
        "  normal: 1,204 × 3 s (measured) = 3,612 s",
        "One worker would take 3,612 s; there are 600 s.",
        "A worker that is there (4) does 600 s of that in whole jobs.",
        "A new worker does 480 s, after 120 s to start.",
        "Needed: 7 workers, 2 more than there are or start (1).",
    ]


def test_it_is_printed_for_programs_too() -> None:
    result, asked = run("--deadline", "90s", "--start", "30s", "--json", load=a_load(10, 0, None))

    found = json.loads(result.output)
    assert asked == "/v1/fleet/model"
    assert (found["workers"], found["jobs"], found["work_s"]) == (1, 10, 50)
    assert (found["deadline_s"], found["start_s"], found["there"]) == (90, 30, 0)
    assert "assumed: none was measured yet" in found["explanation"]


def test_without_jobs_no_worker_is_needed() -> None:
    result, _ = run("--deadline", "1h", load=a_load(0, 0, 3))

    assert result.exit_code == 0
    assert result.output.endswith("No workers are needed.\n")


@pytest.mark.parametrize(
    ("deadline", "start", "reason"),
    [
        ("20s", "0s", "one job takes 30 s."),
        ("100s", "80s", "one job takes 30 s, and another worker starts in 80 s."),
    ],
)
def test_a_deadline_that_cannot_be_met_ends_with_status_1(deadline: str, start: str, reason: str) -> None:
    result, _ = run("--deadline", deadline, "--start", start, load=a_load(10, 0, 3, bulk=2))

    assert result.exit_code == 1
    assert f"No number of workers is enough: {reason}" in result.output


def test_more_than_the_maximum_is_said() -> None:
    result, _ = run("--deadline", "10m", load=a_load(120_000, 0, 3), rules=FleetRules(max_workers=50))

    assert "max_workers is 50: raise MASKFLEET_MAX_WORKERS." in result.output


@pytest.mark.parametrize("duration", ["soon", "10", "10d", "-1m", ""])
def test_a_duration_that_is_none_is_refused(duration: str) -> None:
    result = CliRunner().invoke(main, ["plan", "--deadline", duration])

    assert result.exit_code == 2
    assert "such as 10m" in result.output
