"""How many workers a model needs so that its jobs are done by a time: a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maskfleet.jobs.fleet import ROUNDING


@dataclass(frozen=True, slots=True)
class Jobs:
    """So many jobs that take so many seconds each."""

    count: int
    job_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """workers: how many are needed in all; None if no number is enough.

    work_s: of all jobs, for one worker.  there_s, new_s: how much of it a worker that is there does by then, and one
    that has yet to start.
    """

    workers: int | None
    work_s: float
    there_s: float
    new_s: float


def plan(jobs: Sequence[Jobs], *, deadline_s: float, there: int, start_s: float) -> Plan:
    """Return how many workers it takes until all jobs are done ``deadline_s`` from now, with no further ones.

    Running jobs count in full, as if they had just begun.  there: workers that take jobs now.  start_s: how long
    another one takes to start.  A worker loses the end of its time, when no whole job fits any more: for jobs of one
    length that is known, else it is at most the longest job.  (Graham 1966, "Bounds for Certain Multiprocessing
    Anomalies".)
    """
    jobs = [one for one in jobs if one.count]
    work_s = sum(one.count * one.job_s for one in jobs)
    if not jobs:
        return Plan(0, 0.0, 0.0, 0.0)
    there_s, new_s = (_usable_s(jobs, time_s) for time_s in (deadline_s, deadline_s - start_s))
    longest_s, count = max(one.job_s for one in jobs), sum(one.count for one in jobs)
    if longest_s > deadline_s:
        return Plan(None, work_s, there_s, new_s)
    # With a worker for each job, none waits for another.
    enough = min(count, _workers(work_s, there_s, count))
    if enough > there:
        if longest_s > deadline_s - start_s:
            return Plan(None, work_s, there_s, new_s)
        enough = min(count, there + _workers(work_s - there * there_s, new_s, count))
    return Plan(enough, work_s, there_s, new_s)


def _usable_s(jobs: Sequence[Jobs], time_s: float) -> float:
    """Return how much of a time a worker surely spends on jobs, as long as some are left."""
    lengths = {one.job_s for one in jobs}
    if len(lengths) > 1:
        return max(0.0, time_s - max(lengths))
    [job_s] = lengths
    return max(0, math.floor(time_s / job_s + ROUNDING)) * job_s


def _workers(work_s: float, each_s: float, most: int) -> int:
    return math.ceil(work_s / each_s - ROUNDING) if each_s > 0 else most
