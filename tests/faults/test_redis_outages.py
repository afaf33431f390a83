"""A Redis that runs and does not serve: callers are told, nothing ends, and everything comes back by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.faults.faults import Effect, Scene
from tests.faults.faults.on_redis import redis_busy, redis_disk_fails, redis_read_only, redis_without_replicas
from tests.faults.laboratory import STAND_IN, TENANT, Laboratory
from tests.faults.redis_outages import OUTAGES
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Laboratory]:
    with Laboratory(tmp_path_factory.mktemp("laboratory"), nodes=0, stand_ins=1) as lab:
        lab.store.put(f"uploads/{TENANT}/{UPLOAD}", (repository / "examples" / "coins.png").read_bytes(), "image/png")
        yield lab


UPLOAD = "upl_" + "0" * 32
IMAGE = {"upload_id": UPLOAD}


def spec(points_per_side: int) -> dict[str, object]:
    params = {"points_per_crop": points_per_side, "points_per_batch": 1}
    return {"mode": "everything", "model": STAND_IN, "image": IMAGE, "params": params}


def send(lab: Laboratory, points_per_side: int = 1) -> str:
    answer = lab.ask("POST", "/v1/jobs", json=spec(points_per_side))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def status(lab: Laboratory, job: str) -> str:
    return str(lab.ask("GET", f"/v1/jobs/{job}").json()["status"])


def has_met(lab: Laboratory, program: str, doing: str, reason: str) -> bool:
    """Return whether a program's log tells that it met an outage for this reason while doing something."""
    lines = (lab.folder / f"{program}.log").read_text(errors="replace").splitlines()
    return any('"queue_unavailable"' in line and f'"{doing}"' in line and f'"{reason}"' in line for line in lines)


def refusals(lab: Laboratory) -> list[requests.Response]:
    """Return the API's answer to a readiness check if it is not 200."""
    answer = lab.ask("GET", "/ready")
    return [answer] if answer.status_code != 200 else []


@pytest.mark.parametrize("reason", OUTAGES)
def test_nothing_ends_while_redis_does_not_serve_and_all_comes_back(lab: Laboratory, reason: str) -> None:
    [node] = lab.nodes
    wait_until(lambda: lab.api_is_ready() and lab.child_of(node), 60)
    processes = {name: program.pid for name, program in lab.programs.items()}
    child = lab.child_of(node)
    running = send(lab, points_per_side=15)
    wait_until(lambda: status(lab, running) == "processing", 30)

    with OUTAGES[reason](lab.redis_server.url, lab.folder / "redis"):
        [told] = wait_until(lambda: refusals(lab), 10)
        refused = lab.ask("POST", "/v1/jobs", json=spec(1))
        alive = lab.ask("GET", "/live")
        for program, doing in (
            ("courier-1", "tick"),
            ("courier-2", "tick"),
            (node.name, "announce"),
            (node.name, "beat"),
        ):
            wait_until(lambda program=program, doing=doing: has_met(lab, program, doing, reason), 30)  # type: ignore[misc]  # mypy cannot infer it

    assert told.json()["code"] == refused.json()["code"] == "queue_unavailable"
    assert f"({reason})" in told.json()["detail"]
    assert (refused.status_code, alive.status_code) == (503, 200)
    assert int(refused.headers["Retry-After"]) > 0
    wait_until(lab.api_is_ready, 15)
    ready = f'maskfleet_workers_ready{{model="{STAND_IN}"}} 1.0'
    wait_until(lambda: ready in lab.ask("GET", "/metrics").text, 15)
    assert {name: program.pid for name, program in lab.programs.items()} == processes
    assert lab.child_of(node) == child
    # What ran goes on or is done again, and is not charged for it; what comes now is done.
    wait_until(lambda: status(lab, running) == "succeeded", 60)
    record = lab.ledger.read(running)
    assert record is not None
    assert record.attempt == 1
    job = send(lab)
    wait_until(lambda: status(lab, job) == "succeeded", 30)
    assert lab.child_of(node) == child


@pytest.mark.parametrize("fault", [redis_without_replicas, redis_read_only, redis_disk_fails, redis_busy])
def test_the_faults_of_the_laboratory_do_what_they_say(lab: Laboratory, fault: Callable[[Scene], Effect]) -> None:
    wait_until(lab.api_is_ready, 30)

    effect = fault(Scene(lab, random.Random(1), lambda: None))

    assert effect.acted
    wait_until(lab.api_is_ready, 15)
