"""The number of workers that a model should have, case by case."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, strategies as st

from maskfleet.jobs.fleet import (
    ClassLoad,
    FleetRules,
    ModelLoad,
    Reason,
    WorkerCounts,
    desired_workers,
)
from maskfleet.jobs.schema.spec import Priority

#: In the tests, jobs of class interactive should start within 10 s, normal ones within 60 s, bulk ones within 900 s.
WAITS = {Priority.INTERACTIVE: 10.0, Priority.NORMAL: 60.0, Priority.BULK: 900.0}
RULES = FleetRules(target_wait_s=WAITS, expected_job_s=5, max_workers=100)
NORMAL, INTERACTIVE, BULK = Priority.NORMAL, Priority.INTERACTIVE, Priority.BULK
NO_WORKERS = WorkerCounts()


def load_of(*classes: ClassLoad, workers: WorkerCounts = NO_WORKERS) -> ModelLoad:
    given_classes = {one.priority: one for one in classes}
    return ModelLoad("m", tuple(given_classes.get(one, ClassLoad(one)) for one in Priority), workers)


@dataclass(frozen=True)
class Case:
    load: ModelLoad
    workers: int
    reason: Reason
    rules: FleetRules = RULES


CASES = {
    "a model nobody asked for": Case(load_of(), 0, Reason.IDLE),
    "idle workers are not kept": Case(load_of(workers=WorkerCounts(ready=9)), 0, Reason.IDLE),
    "the first job of a fleet at zero": Case(load_of(ClassLoad(NORMAL, queued=1, job_s=2)), 1, Reason.BACKLOG),
    "a burst: the work by the target wait": Case(
        load_of(ClassLoad(NORMAL, queued=1000, job_s=3)), 3000 // 60, Reason.BACKLOG
    ),
    "a burst, while some are busy: still the work by the target wait": Case(
        load_of(ClassLoad(NORMAL, queued=1000, running=10, job_s=3)), 50, Reason.BACKLOG
    ),
    "a burst, while workers start: they are not asked for twice": Case(
        load_of(ClassLoad(NORMAL, queued=1000, job_s=3), workers=WorkerCounts(starting=50)), 50, Reason.BACKLOG
    ),
    "as many busy workers as the backlog needs": Case(
        load_of(ClassLoad(NORMAL, queued=100, running=10, job_s=2), workers=WorkerCounts(ready=10)), 10, Reason.RUNNING
    ),
    "only running jobs: no more than their workers": Case(
        load_of(ClassLoad(NORMAL, running=10, job_s=2), workers=WorkerCounts(ready=40)), 10, Reason.RUNNING
    ),
    "images that take minutes: a worker for each": Case(
        load_of(ClassLoad(NORMAL, queued=5, job_s=180)), 5, Reason.BACKLOG
    ),
    "images that take minutes: one busy worker in four comes free within a quarter of its job": Case(
        load_of(ClassLoad(NORMAL, queued=4, running=4, job_s=240)), 4 + 3, Reason.BACKLOG
    ),
    "an image that takes exactly the target wait": Case(
        load_of(ClassLoad(NORMAL, queued=5, job_s=60)), 5, Reason.BACKLOG
    ),
    "bulk is patient": Case(load_of(ClassLoad(BULK, queued=1000, job_s=3)), 4, Reason.BACKLOG),
    "interactive is not": Case(load_of(ClassLoad(INTERACTIVE, queued=100, job_s=3)), 30, Reason.BACKLOG),
    "the class that needs most decides": Case(
        load_of(ClassLoad(INTERACTIVE, queued=10, job_s=6), ClassLoad(NORMAL, queued=10, job_s=6)), 6, Reason.BACKLOG
    ),
    "a class waits for the classes before it": Case(
        load_of(ClassLoad(INTERACTIVE, queued=10, job_s=6), ClassLoad(NORMAL, queued=100, job_s=6)), 11, Reason.BACKLOG
    ),
    "an interactive job behind long bulk jobs gets a worker": Case(
        load_of(ClassLoad(INTERACTIVE, queued=1, job_s=2), ClassLoad(BULK, running=1, job_s=600)), 2, Reason.BACKLOG
    ),
    "an interactive job behind many of them waits for the next that ends": Case(
        load_of(ClassLoad(INTERACTIVE, queued=1, job_s=2), ClassLoad(BULK, running=60, job_s=600)), 60, Reason.RUNNING
    ),
    "never more workers than jobs": Case(
        load_of(ClassLoad(INTERACTIVE, queued=1, job_s=1000), ClassLoad(NORMAL, queued=1, job_s=1)), 2, Reason.BACKLOG
    ),
    "a fleet at its maximum": Case(load_of(ClassLoad(NORMAL, queued=10_000, job_s=3)), 100, Reason.MAXIMUM),
    "a maximum below the running jobs": Case(
        load_of(ClassLoad(NORMAL, running=10, job_s=3)), 4, Reason.MAXIMUM, replace(RULES, max_workers=4)
    ),
    "a model that is switched off": Case(
        load_of(ClassLoad(NORMAL, queued=10, job_s=3)), 0, Reason.MAXIMUM, replace(RULES, model_max_workers={"m": 0})
    ),
    "a minimum without jobs": Case(load_of(), 2, Reason.MINIMUM, replace(RULES, min_workers=2)),
    "a minimum of another model": Case(load_of(), 0, Reason.IDLE, replace(RULES, model_min_workers={"other": 2})),
    "a minimum above what jobs need": Case(
        load_of(ClassLoad(NORMAL, queued=1, job_s=2)), 2, Reason.MINIMUM, replace(RULES, model_min_workers={"m": 2})
    ),
    "a minimum above the maximum": Case(
        load_of(), 3, Reason.MINIMUM, replace(RULES, min_workers=5, model_max_workers={"m": 3})
    ),
    "no pace yet: as long as expected": Case(load_of(ClassLoad(NORMAL, queued=100)), 9, Reason.UNMEASURED),
    "no pace yet, but of another class": Case(
        load_of(ClassLoad(NORMAL, queued=30), ClassLoad(BULK, job_s=20)), 10, Reason.UNMEASURED
    ),
    "no pace yet, and the first job takes minutes": Case(
        load_of(ClassLoad(NORMAL, queued=9, running=1, oldest_s=240)), 1 + 9, Reason.UNMEASURED
    ),
    "no pace yet, and nothing runs: the wait says nothing about the jobs": Case(
        load_of(ClassLoad(NORMAL, queued=9, oldest_s=240), workers=WorkerCounts(starting=1)), 1, Reason.UNMEASURED
    ),
    "withdrawn workers are replaced": Case(
        load_of(ClassLoad(NORMAL, queued=100, job_s=3), workers=WorkerCounts(ready=3, withdrawn=2)),
        5 + 2,
        Reason.BACKLOG,
    ),
    "a fleet that has withdrawn altogether doubles, and no more": Case(
        load_of(ClassLoad(NORMAL, queued=100, job_s=3), workers=WorkerCounts(withdrawn=40)), 5 + 5, Reason.BACKLOG
    ),
    "without jobs nobody is replaced": Case(load_of(workers=WorkerCounts(withdrawn=3)), 0, Reason.IDLE),
    "jobs of workers that shut down need no other": Case(
        load_of(ClassLoad(NORMAL, running=4, draining=4, job_s=3), workers=WorkerCounts(draining=4)), 0, Reason.RUNNING
    ),
    "a job that a draining worker handed back is queued": Case(
        load_of(ClassLoad(NORMAL, queued=1, running=3, draining=3, job_s=3), workers=WorkerCounts(draining=4)),
        1,
        Reason.BACKLOG,
    ),
    "several nodes on one device are nodes": Case(
        load_of(ClassLoad(NORMAL, queued=40, running=8, job_s=60), workers=WorkerCounts(ready=8)), 40, Reason.BACKLOG
    ),
    "a target wait of nothing: a worker for each job": Case(
        load_of(ClassLoad(NORMAL, queued=7, running=2, job_s=3)), 9, Reason.BACKLOG, FleetRules({NORMAL: 0.0})
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_should_have_so_many_workers_for_this_reason(name: str) -> None:
    case = CASES[name]

    found = desired_workers(case.load, case.rules)

    assert (found.workers, found.reason) == (case.workers, case.reason), found.explanation


def test_the_reason_is_told_in_words() -> None:
    load = load_of(
        ClassLoad(NORMAL, queued=1200, running=4, job_s=3), workers=WorkerCounts(ready=4, withdrawn=1, starting=2)
    )

    found = desired_workers(load, replace(RULES, max_workers=20))

    assert found.explanation == (
        "1,200 queued and 4 running jobs are 3,612 s of work for one worker. "
        "Besides 4 workers that run one, 56 are needed to start each queued one of class normal within 60 s, "
        "at 3 s a job (measured). "
        "1 worker more replaces one that has withdrawn. "
        "That would make 61; max_workers is 20."
    )
    assert found.backlog_s == 3612
    assert desired_workers(load_of(), RULES).explanation == "No job is queued or running."


CLASS_LOADS = st.builds(
    lambda queued, running, draining, oldest_s, job_s: (queued, running, min(running, draining), oldest_s, job_s),
    st.integers(0, 10_000),
    st.integers(0, 200),
    st.integers(0, 200),
    st.floats(0, 100_000),
    st.none() | st.floats(0, 5_000),
)
LOADS = st.builds(
    lambda classes, counts: ModelLoad(
        "m",
        tuple(ClassLoad(one, *fields) for one, fields in zip(Priority, classes, strict=True)),
        WorkerCounts(*counts),
    ),
    st.tuples(CLASS_LOADS, CLASS_LOADS, CLASS_LOADS),
    st.tuples(*[st.integers(0, 300)] * 4),
)


@given(LOADS, st.integers(0, 500), st.integers(0, 500))
def test_the_number_keeps_its_bounds(load: ModelLoad, fewest: int, most: int) -> None:
    rules = replace(RULES, min_workers=fewest, max_workers=most)

    found = desired_workers(load, rules)

    assert min(fewest, most) <= found.workers <= most
    assert found.workers >= min(load.kept, most)
    assert found.workers <= 2 * max(fewest, load.kept + load.queued)
    assert found.explanation


@given(LOADS, st.integers(0, 300))
def test_workers_that_start_change_nothing(load: ModelLoad, starting: int) -> None:
    coming = replace(load, workers=replace(load.workers, starting=starting))

    assert desired_workers(coming, RULES) == desired_workers(load, RULES)


@given(LOADS, st.integers(0, 2), st.integers(1, 1000))
def test_more_queued_jobs_never_need_fewer_workers(load: ModelLoad, place: int, more: int) -> None:
    classes = list(load.classes)
    classes[place] = replace(classes[place], queued=classes[place].queued + more)

    assert desired_workers(replace(load, classes=tuple(classes)), RULES).workers >= desired_workers(load, RULES).workers
