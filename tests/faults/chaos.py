"""``python -m tests.faults.chaos``: jobs under faults, on our fleet and on plain Celery, and a report of both.

    python -m tests.faults.chaos --jobs 2000 --seconds 300 --seed 1

The exit status tells whether every promise was kept.  The histories are left in ``--folder`` when one is given.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks.machine import RESULTS, describe
from tests.faults.figures import Figures, as_fields, figures
from tests.faults.laboratory import ROOT, Laboratory
from tests.faults.plain_celery import STAND_INS, PlainFigures, run_plain
from tests.faults.promises import Verdict
from tests.faults.run import Plan, run
from tests.faults.schedule import ALL, OF_ANY_FLEET

#: What the issue that this was built for asks for.
REDIS_FROZEN_S = 20.0


@click.command()
@click.option("--jobs", default=2000, show_default=True)
@click.option("--seconds", default=300.0, show_default=True, help="Over which the jobs are sent.")
@click.option("--seed", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where logs and histories are kept.")
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/chaos.json and docs/chaos.md.")
def main(jobs: int, seconds: float, seed: int, folder: Path | None, *, write: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        plan = Plan(jobs=jobs, seconds=seconds, seed=seed, faults=ALL, frozen_s=REDIS_FROZEN_S)
        with Laboratory(place / "maskfleet", stand_ins=STAND_INS) as lab:
            verdict = run(lab, plan, _say)
            ours = figures(lab.history.read(), verdict)
        _say(json.dumps(as_fields(ours)))
        plain = run_plain(place / "plain", replace(plan, faults=OF_ANY_FLEET), _say)
        _say(json.dumps(asdict(plain)))
    command = f"make chaos JOBS={jobs} SECONDS={seconds:g} SEED={seed}"
    if write:
        _write(command, ours, plain, verdict)
    for broken in verdict.broken:
        _say(f"BROKEN: {broken}")
    sys.exit(0 if verdict.kept else 1)


def _say(words: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {words}")


def _write(command: str, ours: Figures, plain: PlainFigures, verdict: Verdict) -> None:
    machine = describe()
    report = {
        "command": command,
        "machine": machine,
        "maskfleet": as_fields(ours),
        "broken promises": list(verdict.broken),
        "plain celery": asdict(plain),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
    (ROOT / "docs" / "chaos.md").write_text(_page(command, machine, ours, plain))


def _page(command: str, machine: dict[str, object], ours: Figures, plain: PlainFigures) -> str:
    put_back = f"{ours.put_back_s.get('p50', 0):g} s / {ours.put_back_s.get('p99', 0):g} s"
    recovery = f"{ours.recovery_s.get('p50', 0):g} s / {ours.recovery_s.get('p99', 0):g} s"
    ours_met, plain_met = _shared(ours, plain)
    rows = [
        ("jobs accepted", ours.jobs, plain.jobs),
        ("lost: accepted, never ended, and found nowhere", ours.lost, plain.of_these_nowhere),
        ("given up after its last retry, and nobody was told", 0, plain.of_these_given_up),
        (
            "stuck: accepted and never ended",
            ours.stuck,
            plain.never_ended - plain.of_these_nowhere - plain.of_these_given_up,
        ),
        ("doubled: two ends were told or shown", ours.doubled, plain.ended_twice),
        ("other broken promises", ours.broken_promises - ours.lost - ours.stuck - ours.doubled, "not looked at"),
        ("faults of the kinds that both can meet", ours_met, plain_met),
        ("faults of an API and of couriers", sum(ours.faults.values()) - ours_met, "no such thing"),
        ("jobs that were begun more than once", ours.executed_more_than_once, plain.executed_more_than_once),
        ("attempts that were fenced", ours.fenced, "no such thing"),
        ("jobs put back after a lease ran out", ours.requeued, "no such thing"),
        ("from the fault to the job's being queued again, p50 / p99", put_back, "not measured"),
        ("from the fault to its next claim, behind what waits before it", recovery, "not measured"),
        ("webhooks, and how many were sent again", f"{ours.webhooks}, {ours.webhooks_sent_again}", "not counted"),
    ]
    kinds = sorted({*ours.faults, *plain.faults})
    return "\n".join(
        [
            "# Under fire",
            "",
            "What a run of the fault laboratory (`tests/faults/`) came to: real processes that are killed, frozen and",
            "cut off, on our fleet and on plain Celery set up with care (late acknowledgement, rejection when a worker",
            "is lost, retries, a visibility timeout of 30 s: `tests/faults/plain_celery.py`).",
            "",
            f"`{command}`, {machine['measured_at']}, commit {machine['commit']}; {machine['processor']}, "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB.",
            "",
            "| | maskfleet | plain Celery |",
            "|---|---|---|",
            *(f"| {what} | {one} | {other} |" for what, one, other in rows),
            "",
            "What is promised, and how it is checked over a log of all that was seen: `tests/faults/promises.py`.",
            "The same seed draws the faults for both, each from those that it can meet; so the order differs, and",
            "plain Celery meets more of the shared kinds in the same time. Its task tells of its end itself, once for",
            "each execution that comes so far. Whatever it raises is retried, as our attempts are.",
            "",
            f"- Ends: {_counts(ours.ends)}. Some jobs are made to fail: they kill their workers, lose them their",
            "  device, hang, or run longer than they allow themselves. Faults must explain any other failure.",
            f"- How the attempts at them ended: {_counts(ours.attempts)}.",
            "- Submits that were not accepted at once, and were sent again under the same key (0: without an answer):",
            f"  {_counts(ours.submits_not_accepted)}.",
            f"- {ours.followed} jobs were followed to their end by their streams of events, across the API's restarts.",
            "",
            "One job in five is done by a node with the bundled model, the others by three nodes whose model is",
            "replaced by one that only waits; all else of these is the worker's own. A lease is 2 s here, and 30 s by",
            f"default; Redis is frozen for {REDIS_FROZEN_S:g} s, and nothing is put back meanwhile. The next claim",
            "waits for a process that starts, and for all jobs that are queued before.",
            "",
            "| fault | times, maskfleet | times, plain Celery |",
            "|---|---|---|",
            *(
                f"| {kind.replace('_', ' ')} | {ours.faults.get(kind, 0)} | {plain.faults.get(kind, 0)} |"
                for kind in kinds
            ),
            "",
        ]
    )


def _shared(ours: Figures, plain: PlainFigures) -> tuple[int, int]:
    """Count the faults that each met, of the kinds that both can meet."""
    kinds = {kind.name for kind in OF_ANY_FLEET}
    ours_met, plain_met = (sum(count for kind, count in met.faults.items() if kind in kinds) for met in (ours, plain))
    return ours_met, plain_met


def _counts(of: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in of.items())


if __name__ == "__main__":
    main()
