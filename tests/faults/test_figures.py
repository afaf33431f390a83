"""The figures of a run follow from what was observed in it, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.faults.chaos import page
from tests.faults.figures import Figures, figures
from tests.faults.history import Accepted, BatchAccepted, Broke, Notified, Shown
from tests.faults.laboratory import ROOT
from tests.faults.plain_celery import PlainFigures
from tests.faults.promises import check

KILLED = Broke(at=3, name="node_killed", until=4, harms="worker", acted=True, node="node-1")
TOLD = Notified(at=5, job="a", webhook_id="msg_a_1", status="succeeded", answered=204, event="job.succeeded")


def test_a_fault_counts_when_it_acted() -> None:
    history = (KILLED, replace(KILLED, acted=False), replace(KILLED, name="store_slow", harms="store"))

    seen = figures(history, check(history))

    assert (seen.faults, seen.felled) == ({"node_killed": 1, "store_slow": 1}, 1)


@pytest.mark.parametrize(
    ("told", "twice"),
    [
        ((TOLD,), 0),
        ((replace(TOLD, answered=500), replace(TOLD, answered=0), TOLD), 0),
        ((replace(TOLD, event="job.started"), TOLD), 0),
        ((TOLD, TOLD), 1),
        ((TOLD, replace(TOLD, webhook_id="msg_a_2")), 1),
        ((TOLD, TOLD, TOLD, replace(TOLD, job="b"), replace(TOLD, job="c"), replace(TOLD, job="c")), 2),
    ],
)
def test_an_end_is_told_twice_when_two_webhooks_of_it_arrived(told: tuple[Notified, ...], twice: int) -> None:
    assert figures(told, check(told)).told_twice == twice


def test_an_end_that_no_receiver_was_told_is_counted() -> None:
    accepted = Accepted(key="k", job="a", kind="box")
    history = (accepted, Shown(job="a", status="canceled"), replace(TOLD, status="canceled", answered=500))

    seen = figures(history, check(history))

    assert seen.untold == 1


def test_the_share_of_a_run_that_is_excused_is_that_in_which_redis_was_broken_or_had_just_been() -> None:
    of_redis = replace(KILLED, name="redis_killed", harms="redis", node="")
    # From 0 to 100; Redis was broken from 10 to 12 and from 14 to 20, each with five seconds after it.
    faults = (
        replace(KILLED, at=0, until=1),
        replace(of_redis, at=10, until=12),
        replace(of_redis, at=14, until=20),
        replace(KILLED, at=99, until=100),
    )

    assert figures(faults, check(faults)).excused == 0.15


def test_batches_and_their_jobs_are_counted() -> None:
    jobs = tuple(Accepted(key=f"k {job}", job=job, kind="box", batch="batch") for job in ("a", "b"))
    history = (
        BatchAccepted(key="k", batch="batch", images=2, jobs=("a", "b")),
        *jobs,
        Accepted(key="c", job="c", kind="box"),
    )

    seen = figures(history, check(history))

    assert (seen.jobs, seen.batches, seen.batched_jobs) == (3, 1, 2)


def test_the_page_says_what_the_results_say() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "chaos.json").read_text())

    written = page(
        report["command"], report["machine"], Figures(**report["maskfleet"]), PlainFigures(**report["plain celery"])
    )

    assert (ROOT / "docs" / "chaos.md").read_text() == written
