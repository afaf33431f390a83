"""The simulated autoscalers do what the documentation of Kubernetes and KEDA says of the real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.autoscale_model import (
    Autoscaler,
    Cluster,
    Seen,
    Work,
    of_cpu,
    of_desired_workers,
    of_list_length,
)
from maskfleet.jobs.fleet import FleetRules

NOTHING = Seen(queued=0, running=0, draining=0, oldest_s=0, job_s=None, starting=0, ready=0, cpu=0)


def test_cpu_is_scaled_as_in_the_walkthrough() -> None:
    """50 replicas at 90 % of a target of 75 % become 60; within a tenth nothing happens."""
    trigger = of_cpu(0.75)

    assert trigger(replace(NOTHING, ready=50, cpu=0.9), 50) == 60
    assert trigger(replace(NOTHING, ready=50, cpu=0.8), 50) == 50
    assert trigger(replace(NOTHING, ready=50, cpu=0.3), 50) == 20
    # Those that start count as using nothing: they may turn the answer into none.
    assert trigger(replace(NOTHING, ready=50, starting=10, cpu=0.9), 60) == 60


def test_a_lists_length_is_divided_by_its_target() -> None:
    trigger = of_list_length(5)

    assert trigger(replace(NOTHING, queued=101), 1) == 21
    assert trigger(replace(NOTHING, queued=101), 20) == 20  # within a tenth
    assert trigger(replace(NOTHING, running=40), 40) == 0  # what runs is not in the list


def test_replicas_rise_by_doubling_or_four_and_fall_to_the_highest_of_five_minutes() -> None:
    wanted = iter([100] * 6 + [10] * 40)
    scaler = Autoscaler("", lambda _seen, _replicas: next(wanted), to_zero=False)
    replicas, history = 1, []

    for look in range(46):
        replicas = scaler.replicas(look * 15.0, NOTHING, replicas, most=1000)
        history.append(replicas)

    assert history[:6] == [5, 10, 20, 40, 80, 100]
    assert history[25] == 100  # the last 100 was asked for 300 s ago
    assert history[26] == 10


def test_none_become_one_when_there_is_work_and_one_becomes_none_after_five_minutes_without() -> None:
    queued = dict.fromkeys(range(4, 6), 1)
    scaler = Autoscaler("", of_list_length(1), to_zero=True)
    replicas, history = 0, []

    for look in range(40):
        seen = replace(NOTHING, queued=queued.get(look, 0))
        replicas = scaler.replicas(look * 15.0, seen, replicas, most=10)
        history.append(replicas)

    assert history[:4] == [0] * 4
    assert history[4] == 1
    # It was last active at the look at 60 s, and is asked every 30 s.
    assert history.index(0, 5) * 15.0 > 60 + 300
    assert history[-1] == 0


@pytest.mark.parametrize("to_zero", [True, False])
def test_each_job_is_done_once_and_costs_at_least_its_own_time(to_zero: bool) -> None:
    work = Work([float(number % 300) for number in range(500)], [3.0] * 500)
    work = Work(sorted(work.arrivals), work.services)

    outcome = Cluster(work, Autoscaler("", of_desired_workers(FleetRules()), to_zero=to_zero), cold_s=30, most=50).run()

    assert all(wait >= 0 for wait in outcome.waits)
    assert outcome.gpu_s >= work.gpu_s


def test_a_job_that_outlasts_its_draining_worker_runs_again() -> None:
    work = Work([0.0, 0.0], [40.0, 400.0])
    shrinking = Autoscaler("", lambda _seen, _replicas: 1, to_zero=False, stabilization_s=0)

    outcome = Cluster(work, shrinking, cold_s=1, most=2, replicas=2).run()

    # One of the two is told to end at once, and hands its job back after 25 s.
    assert outcome.handed_back == 1
    assert max(outcome.waits) >= 25
