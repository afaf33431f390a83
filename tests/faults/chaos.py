"""``python -m tests.faults.chaos``: run jobs under faults, on our fleet and on plain Celery, and report on both.

    python -m tests.faults.chaos --jobs 2000 --seconds 300 --seed 1

The exit status is 0 if every promise was kept.  The histories are kept in ``--folder`` if one is given.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks.machine import describe
from tests.faults.figures import Figures, as_fields, figures
from tests.faults.laboratory import LEASE_S, ROOT, Laboratory
from tests.faults.plain_celery import STAND_INS, PlainFigures, run_plain
from tests.faults.promises import Verdict
from tests.faults.run import Plan, run
from tests.faults.schedule import ALL, OF_ANY_FLEET

#: Ten times the lease of the laboratory, so that every running attempt loses its lease meanwhile.
REDIS_FROZEN_S = 20.0
#: Jobs that come in three batches, so that queues are thousands deep.
FLOOD = 3000


@click.command()
@click.option("--jobs", default=2000, show_default=True)
@click.option("--seconds", default=300.0, show_default=True, help="Time over which the jobs are sent.")
@click.option("--seed", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Folder for logs and histories.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=ROOT,
    help="Folder for benchmarks/results/chaos.json and docs/chaos.md.  [default: this repository]",
)
def main(jobs: int, seconds: float, seed: int, folder: Path | None, into: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        plan = Plan(
            jobs=jobs, seconds=seconds, seed=seed, faults=ALL, frozen_s=REDIS_FROZEN_S, empties=True, flood=FLOOD
        )
        with Laboratory(place / "maskfleet", stand_ins=STAND_INS) as lab:
            verdict = run(lab, plan, _say)
            ours = figures(lab.history.read(), verdict)
        _say(json.dumps(as_fields(ours)))
        plain = run_plain(place / "plain", replace(plan, faults=OF_ANY_FLEET, empties=False), _say)
        _say(json.dumps(asdict(plain)))
    command = f"make chaos JOBS={jobs} SECONDS={seconds:g} SEED={seed}"
    _write(into, command, ours, plain, verdict)
    for broken in verdict.broken:
        _say(f"BROKEN: {broken}")
    sys.exit(0 if verdict.kept else 1)


def _say(words: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {words}")


def _write(into: Path, command: str, ours: Figures, plain: PlainFigures, verdict: Verdict) -> None:
    machine = describe()
    report = {
        "command": command,
        "machine": machine,
        "maskfleet": as_fields(ours),
        "broken promises": list(verdict.broken),
        "plain celery": asdict(plain),
    }
    for name, text in (
        ("benchmarks/results/chaos.json", json.dumps(report, indent=2) + "\n"),
        ("docs/chaos.md", page(command, machine, ours, plain)),
    ):
        place = into / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _summary(ours: Figures, plain: PlainFigures) -> str:
    """Tell what a run came to in one paragraph."""
    ours_met, plain_met = _shared(ours, plain)
    put_back = f"{ours.put_back_s.get('p50', 0):g} s"
    failovers = {1: "once"}.get(count := ours.faults.get("redis_fails_over", 0), f"{count} times")
    text = (
        f"Of {ours.jobs:,} jobs, {ours.batched_jobs:,} of them in "
        f"{ours.batches} batches, run under {sum(ours.faults.values())} faults of {len(ours.faults)} kinds, "
        f"{ours.felled} of which killed, froze or cut off a process, {ours.lost or 'none'} was lost, "
        f"{ours.stuck or 'none'} stuck and {ours.doubled or 'none'} ended in two states; other promises broken: "
        f"{_others(ours) or 'none'}. {ours.told_twice} ends were reported more than once{_one_id(ours)}. "
        f"Redis itself was emptied once, and failed over {failovers} to a replica that lagged: "
        f"{ours.taken} jobs went with what it lost. {ours.fenced} late attempts were fenced off; "
        f"a job whose {LEASE_S:g} s lease expired was requeued {put_back} after the fault (p50). "
        f"Plain Celery, with {plain.jobs:,} jobs and {plain_met} faults of the kinds that both can meet (ours met "
        f"{ours_met} of these), lost {plain.of_these_nowhere or 'no'} jobs, gave up on "
        f"{plain.of_these_given_up or 'none'} without notifying anyone, and reported "
        f"{plain.told_twice} job ends more than once."
    )
    return textwrap.fill(text, 150, break_on_hyphens=False)


def page(command: str, machine: dict[str, object], ours: Figures, plain: PlainFigures) -> str:
    """Return docs/chaos.md."""
    put_back = f"{ours.put_back_s.get('p50', 0):g} s / {ours.put_back_s.get('p99', 0):g} s"
    recovery = f"{ours.recovery_s.get('p50', 0):g} s / {ours.recovery_s.get('p99', 0):g} s"
    ours_met, plain_met = _shared(ours, plain)
    plain_stuck = plain.never_ended - plain.of_these_nowhere - plain.of_these_given_up
    told_twice = f"{ours.told_twice}{_one_id(ours)}; {ours.webhooks_sent_again} webhooks were sent again"
    rows = [
        ("jobs accepted", ours.jobs, plain.jobs),
        ("of these, sent in batches", f"{ours.batched_jobs}, in {ours.batches} batches", "not supported"),
        ("lost: accepted, never ended, and found nowhere", ours.lost, plain.of_these_nowhere),
        (
            "gone with what Redis itself lost, of the jobs that were open or changed just then",
            f"{ours.taken} of {ours.exposed}",
            "not tried",
        ),
        (
            "ended or was given up, and no receiver answered 2xx (or 410)",
            ours.untold,
            plain.of_these_given_up,
        ),
        ("stuck: accepted and never ended", ours.stuck, plain_stuck),
        ("ends that a receiver answered 2xx more than once", told_twice, plain.told_twice),
        ("ended in two states, or reported under two ids", ours.doubled, "not checked"),
        ("other broken promises", _others(ours), "not checked"),
        ("faults that took effect", _all_faults(ours), _all_faults(plain)),
        ("faults of the kinds that both can meet", ours_met, plain_met),
        ("faults of the API and the couriers", sum(ours.faults.values()) - ours_met, "not applicable"),
        ("share of the run in which a fault of Redis may explain a lost lease", f"{ours.excused:.0%}", "not checked"),
        ("jobs started more than once", ours.executed_more_than_once, plain.executed_more_than_once),
        ("attempts fenced off", ours.fenced, "not supported"),
        ("jobs requeued after their lease expired", ours.requeued, "not supported"),
        ("from the fault until the job is requeued, p50 / p99", put_back, "not measured"),
        ("from the fault until it is claimed again, including time in the queue", recovery, "not measured"),
        ("webhooks", ours.webhooks, "not counted"),
    ]
    kinds = sorted({*ours.faults, *plain.faults})
    return "\n".join(
        [
            "# Fault injection",
            "",
            "Results of one run of the fault laboratory (`tests/faults/`): real processes are killed, frozen and cut",
            "off, servers are slow, refuse requests or have the wrong time, both on our fleet and on a carefully",
            "configured plain Celery (late acknowledgement, rejection when a worker is lost, retries, a visibility",
            "timeout of 30 s: `tests/faults/plain_celery.py`). A fault counts only if it hit its target: a node that",
            "was running a job, a bell about to be rung, a webhook in flight.",
            "",
            f"`{command}`, {machine['measured_at']}, commit {machine['commit']}; {machine['processor']}, "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB.",
            "",
            _summary(ours, plain),
            "",
            "| | maskfleet | plain Celery |",
            "|---|---|---|",
            *(f"| {what} | {one} | {other} |" for what, one, other in rows),
            "",
            "The promises, and how they are checked against a log of everything observed: `tests/faults/promises.py`.",
            "Both runs draw their faults from the same seed, each from the kinds that can happen to it, so the order",
            "differs, and plain Celery has more time for the shared kinds. Its task sends its own notification, once",
            "for each execution that gets that far. Any exception it raises is retried, as our attempts are. Ours",
            "sends a webhook again when it cannot know whether it arrived, under the same id, so that the receiver",
            "can recognise it.",
            "",
            f"- Final states: {_counts(ours.ends)}. Some jobs are made to fail: they kill their workers, lose their",
            "  device, hang, or exceed their own time limit. Any other failure must be explained by a fault.",
            f"- Outcomes of their attempts: {_counts(ours.attempts)}.",
            "- Redis was emptied early in the run, and failed over to a replica that had got nothing for up to 2 s. Of",
            f"  {ours.exposed} jobs that this may have touched {ours.taken} are gone. None of the others is stuck, and",
            "  none has half a result. Plain Celery was spared these faults.",
            "- Submits that were not accepted at once, and were sent again under the same key (0: no response):",
            f"  {_counts(ours.submits_not_accepted)}.",
            f"- {ours.followed} jobs were followed to the end over their event streams, across restarts of the API.",
            "",
            "One job in five runs on a node with the bundled model, the others on three nodes whose model is replaced",
            "by one that only waits; everything else on these is the real worker. The lease is 2 s here, 30 s by",
            f"default; Redis is frozen for {REDIS_FROZEN_S:g} s, during which nothing can be requeued. The next claim",
            "waits for a process to start, and for all jobs queued earlier.",
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
    """Count the faults that each side met, of the kinds that both can meet."""
    kinds = {kind.name for kind in OF_ANY_FLEET}
    ours_met, plain_met = (sum(count for kind, count in met.faults.items() if kind in kinds) for met in (ours, plain))
    return ours_met, plain_met


def _others(ours: Figures) -> int:
    return ours.broken_promises - ours.lost - ours.stuck - ours.untold - ours.doubled


def _one_id(ours: Figures) -> str:
    return "" if ours.doubled else ", each under a single id"  # ends reported under several ids count as doubled


def _all_faults(of: Figures | PlainFigures) -> str:
    return f"{sum(of.faults.values())} of {len(of.faults)} kinds; {of.felled} killed, froze or cut off a process"


def _counts(of: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in of.items())


if __name__ == "__main__":
    main()
