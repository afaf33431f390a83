"""``python -m tests.faults.chaos``: jobs under faults, on our fleet and on plain Celery, and a report of both.

    python -m tests.faults.chaos --jobs 2000 --seconds 300 --seed 1

The exit status tells whether every promise was kept.  The histories are left in ``--folder`` when one is given.
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

#: What the issue that this was built for asks for.
REDIS_FROZEN_S = 20.0


@click.command()
@click.option("--jobs", default=2000, show_default=True)
@click.option("--seconds", default=300.0, show_default=True, help="Over which the jobs are sent.")
@click.option("--seed", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where logs and histories are kept.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=ROOT,
    help="The folder for benchmarks/results/chaos.json, docs/chaos.md and README.md.  [default: this repository]",
)
def main(jobs: int, seconds: float, seed: int, folder: Path | None, into: Path) -> None:
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
    readme = with_paragraph((ROOT / "README.md").read_text(), _paragraph(command, machine, ours, plain))
    for name, text in (
        ("benchmarks/results/chaos.json", json.dumps(report, indent=2) + "\n"),
        ("docs/chaos.md", _page(command, machine, ours, plain)),
        ("README.md", readme),
    ):
        place = into / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def with_paragraph(readme: str, paragraph: str) -> str:
    """Put the paragraph in the place of the one that tells of an earlier run.  Raises ValueError when there is none."""
    begins, between, ends = readme.partition("Under fire (")
    _, last, after = ends.partition("[docs/chaos.md](docs/chaos.md).")
    if not between or not last:
        raise ValueError("The README has no paragraph that begins with 'Under fire (' and ends with docs/chaos.md.")
    return begins + paragraph + after


def _paragraph(command: str, machine: dict[str, object], ours: Figures, plain: PlainFigures) -> str:
    """Sum a run up for the README."""
    ours_met, plain_met = _shared(ours, plain)
    where = f"{str(machine['measured_at'])[:10]}, {machine['processor']}, {machine['cores']} cores"
    put_back = f"{ours.put_back_s.get('p50', 0):g} s"
    text = (
        f"Under fire (`{command}`, {where}): of {ours.jobs:,} jobs, {ours.batched_jobs} of them in {ours.batches} "
        f"batches, under {sum(ours.faults.values())} faults of {len(ours.faults)} kinds, {ours.felled} of which "
        f"killed, froze or cut off a process, {ours.lost or 'none'} was lost, {ours.stuck or 'none'} stuck and "
        f"{ours.doubled or 'none'} ended in two ways; {ours.told_twice} ends were told more than once{_one_id(ours)}; "
        f"{ours.fenced} attempts that came too late "
        f"were fenced; a job whose lease of {LEASE_S:g} s ran out was queued again {put_back} after the fault (p50). "
        f"Plain Celery, with {plain.jobs:,} jobs and {plain_met} faults of the kinds that both can meet, of which we "
        f"met {ours_met}, lost {plain.of_these_nowhere}, gave up {plain.of_these_given_up} and told nobody, and told "
        f"of {plain.told_twice} ends more than once:"
    )
    return f"{textwrap.fill(text, 150, break_on_hyphens=False)}\n[docs/chaos.md](docs/chaos.md)."


def _page(command: str, machine: dict[str, object], ours: Figures, plain: PlainFigures) -> str:
    put_back = f"{ours.put_back_s.get('p50', 0):g} s / {ours.put_back_s.get('p99', 0):g} s"
    recovery = f"{ours.recovery_s.get('p50', 0):g} s / {ours.recovery_s.get('p99', 0):g} s"
    ours_met, plain_met = _shared(ours, plain)
    others = ours.broken_promises - ours.lost - ours.stuck - ours.untold - ours.doubled
    plain_stuck = plain.never_ended - plain.of_these_nowhere - plain.of_these_given_up
    told_twice = f"{ours.told_twice}{_one_id(ours)}; {ours.webhooks_sent_again} webhooks were sent again"
    rows = [
        ("jobs accepted", ours.jobs, plain.jobs),
        ("of these, sent in batches", f"{ours.batched_jobs}, in {ours.batches} batches", "no such thing"),
        ("lost: accepted, never ended, and found nowhere", ours.lost, plain.of_these_nowhere),
        (
            "ended or was given up, and no receiver said 2xx (or 410) to that",
            ours.untold,
            plain.of_these_given_up,
        ),
        ("stuck: accepted and never ended", ours.stuck, plain_stuck),
        ("ends that a receiver answered 2xx more than once", told_twice, plain.told_twice),
        ("ended in two ways, or told under two ids", ours.doubled, "not looked at"),
        ("other broken promises", others, "not looked at"),
        ("faults that acted", _all_faults(ours), _all_faults(plain)),
        ("faults of the kinds that both can meet", ours_met, plain_met),
        ("faults of an API and of couriers", sum(ours.faults.values()) - ours_met, "no such thing"),
        ("jobs that were begun more than once", ours.executed_more_than_once, plain.executed_more_than_once),
        ("attempts that were fenced", ours.fenced, "no such thing"),
        ("jobs put back after a lease ran out", ours.requeued, "no such thing"),
        ("from the fault to the job's being queued again, p50 / p99", put_back, "not measured"),
        ("from the fault to its next claim, behind what waits before it", recovery, "not measured"),
        ("webhooks", ours.webhooks, "not counted"),
    ]
    kinds = sorted({*ours.faults, *plain.faults})
    return "\n".join(
        [
            "# Under fire",
            "",
            "What a run of the fault laboratory (`tests/faults/`) came to: real processes that are killed, frozen and",
            "cut off, slow servers, refusals and wrong clocks, on our fleet and on plain Celery set up with care (late",
            "acknowledgement, rejection when a worker is lost, retries, a visibility timeout of 30 s:",
            "`tests/faults/plain_celery.py`). A fault counts when it hit what it is named for: a node at a job, a job",
            "that was about to be published, a webhook that was on its way.",
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
            "plain Celery has more time for the shared kinds. Its task tells of its end itself, once for each",
            "execution that comes so far. Whatever it raises is retried, as our attempts are. Ours sends a webhook",
            "again when it does not know whether it arrived, under the id that it had, by which a receiver knows it.",
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


def _one_id(ours: Figures) -> str:
    return "" if ours.doubled else ", each under its one id"  # several ids are among what is doubled


def _all_faults(of: Figures | PlainFigures) -> str:
    return f"{sum(of.faults.values())} of {len(of.faults)} kinds; {of.felled} killed, froze or cut off a process"


def _counts(of: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in of.items())


if __name__ == "__main__":
    main()
