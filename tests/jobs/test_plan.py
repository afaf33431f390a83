"""How many workers it takes until all jobs are done by a time, against a schedule that is carried out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st

from maskfleet.jobs.plan import Jobs, plan


@dataclass(frozen=True)
class Case:
    jobs: tuple[Jobs, ...]
    workers: int | None
    deadline_s: float = 600
    there: int = 0
    start_s: float = 0


CASES = {
    "nothing to do": Case((), 0),
    "one worker is enough": Case((Jobs(100, 3),), 1),
    "as many as whole jobs fit": Case((Jobs(5, 100),), 3, deadline_s=200),
    "the end of the time is lost": Case((Jobs(6, 70),), 3, deadline_s=200),
    "a worker for each job": Case((Jobs(5, 180),), 5, deadline_s=200),
    "exactly": Case((Jobs(4, 50),), 1, deadline_s=200),
    "a job that takes longer than there is": Case((Jobs(1, 601),), None),
    "those that are there are enough": Case((Jobs(100, 3),), 1, there=8, start_s=6000),
    "new ones start first": Case((Jobs(200, 6),), 3, there=1, start_s=240),
    "new ones would come too late": Case((Jobs(300, 6),), None, there=1, start_s=595),
    "many are there, and one more job": Case((Jobs(101, 6),), 2, there=1, start_s=0),
    "several lengths": Case((Jobs(100, 3), Jobs(10, 60)), 2),
    "classes without jobs say nothing": Case((Jobs(100, 3), Jobs(0, 6000)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_so_many_workers_are_needed(name: str) -> None:
    case = CASES[name]

    found = plan(case.jobs, deadline_s=case.deadline_s, there=case.there, start_s=case.start_s)

    assert found.workers == case.workers, found


def done_at_s(jobs: Sequence[Jobs], there: int, new: int, start_s: float) -> float:
    """Carry the jobs out, each by the worker that is free first; return when the last one ends."""
    free = [0.0] * there + [start_s] * new
    heapq.heapify(free)
    last = 0.0
    for one in jobs:
        for _ in range(one.count):
            ended = heapq.heappop(free) + one.job_s
            last = max(last, ended)
            heapq.heappush(free, ended)
    return last


JOBS = st.lists(st.builds(Jobs, st.integers(0, 60), st.sampled_from([0.5, 1, 2, 7, 30])), max_size=3)


@given(JOBS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 100))
def test_so_many_workers_are_done_in_time(jobs: list[Jobs], deadline_s: float, there: int, start_s: float) -> None:
    found = plan(jobs, deadline_s=deadline_s, there=there, start_s=start_s)

    if found.workers is None:
        # A job that a new worker could not end in time, and too many for those that are there.
        assert any(one.count and one.job_s > deadline_s - start_s for one in jobs)
    elif found.workers:
        new = max(0, found.workers - there)
        assert done_at_s(jobs, found.workers - new, new, start_s) <= deadline_s


@given(st.integers(1, 300), st.sampled_from([0.5, 1, 2, 7, 30]), st.integers(1, 200), st.integers(0, 5))
def test_for_jobs_of_one_length_fewer_are_not_enough(count: int, job_s: float, deadline_s: float, there: int) -> None:
    found = plan([Jobs(count, job_s)], deadline_s=deadline_s, there=there, start_s=0)

    if found.workers is None:
        assert job_s > deadline_s
    elif found.workers > 1:
        fewer = found.workers - 1
        assert done_at_s([Jobs(count, job_s)], fewer, 0, 0) > deadline_s
