"""How many workers a model should have, and why: a pure function of what the ledger knows.

Kubernetes, KEDA or a person does the scaling; docs/scaling.md shows how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.spec import Priority

#: Stands where a model's name does for jobs that need none: their queues, and the workers that take them.
OUTPUTS = "outputs"
#: Within how many seconds a job of each class should start, unless the settings say otherwise.
DEFAULT_TARGET_WAIT_S: Mapping[Priority, float] = MappingProxyType(
    {Priority.INTERACTIVE: 10.0, Priority.NORMAL: 60.0, Priority.BULK: 900.0}
)
#: KEDA's default for ``maxReplicaCount``.
DEFAULT_MAX_WORKERS = 100
#: Shorter measurements are rounding: the ledger measures in milliseconds.
SHORTEST_JOB_S = 0.001
#: So that a quotient that is a whole number but for its rounding is one.
ROUNDING = 1e-9


class Reason(OpenEnum):
    """What decided the number of workers."""

    #: No job is queued or running.
    IDLE = "idle"
    #: Each running job keeps its worker, and those workers start the queued ones in time.
    RUNNING = "running"
    #: More workers are needed, or the queued jobs would start too late.
    BACKLOG = "backlog"
    #: The same, but no job has been measured yet, so that the seconds each takes are assumed.
    UNMEASURED = "unmeasured"
    #: ``min_workers`` is more than the jobs need.
    MINIMUM = "minimum"
    #: ``max_workers`` is less than the jobs need.
    MAXIMUM = "maximum"


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """The jobs of one model in one class.

    draining: how many of the running ones are held by workers that shut down.  oldest_s: the age of the oldest queued
    one, 0 for none.  job_s: how long a job takes, as measured; None before one has succeeded.
    """

    priority: Priority
    queued: int = 0
    running: int = 0
    draining: int = 0
    oldest_s: float = 0.0
    job_s: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """A model's workers.

    ready: those that take jobs, or run one.  withdrawn: those whose self-test fails.  elsewhere: how many of the ready
    ones run a job of another queue: of jobs that need no model, or for those, of a model.
    """

    starting: int = 0
    ready: int = 0
    draining: int = 0
    withdrawn: int = 0
    elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """What a model's workers have to do, and who they are.  classes: the most urgent first."""

    model: str
    classes: tuple[ClassLoad, ...]
    workers: WorkerCounts = WorkerCounts()

    @property
    def queued(self) -> int:
        return sum(load.queued for load in self.classes)

    @property
    def running(self) -> int:
        return sum(load.running for load in self.classes)

    @property
    def kept(self) -> int:
        """Running jobs whose workers stay."""
        return sum(load.running - load.draining for load in self.classes)


@dataclass(frozen=True, slots=True)
class FleetRules:
    """What the operator wants.

    expected_job_s: how long a job takes, as long as none was measured.  model_min_workers, model_max_workers: of
    individual models.
    """

    target_wait_s: Mapping[Priority, float] = field(default_factory=dict)
    expected_job_s: float = 5.0
    min_workers: int = 0
    max_workers: int = DEFAULT_MAX_WORKERS
    model_min_workers: Mapping[str, int] = field(default_factory=dict)
    model_max_workers: Mapping[str, int] = field(default_factory=dict)

    def wait_s(self, priority: Priority) -> float:
        """Return within how many seconds a job of a class should start."""
        return self.target_wait_s.get(priority, DEFAULT_TARGET_WAIT_S[priority])

    def bounds(self, model: str) -> tuple[int, int]:
        """Return how few and how many workers a model may have; the maximum wins over the minimum."""
        most = self.model_max_workers.get(model, self.max_workers)
        # Workers with a model take the jobs that need none, too, so that none need be there for those alone.
        usual = 0 if model == OUTPUTS else self.min_workers
        return min(self.model_min_workers.get(model, usual), most), most


@dataclass(frozen=True, slots=True)
class DesiredWorkers:
    """How many workers a model should have in all, and why.

    explanation: a sentence for a person.  backlog_s: how long one worker would take for all queued and running jobs.
    """

    workers: int
    reason: Reason
    explanation: str
    backlog_s: float


def desired_workers(load: ModelLoad, rules: FleetRules) -> DesiredWorkers:
    """Return how many workers a model should have, so that each queued job starts within its class's target wait.

    Each running job keeps its worker.  Jobs whose worker shuts down do not count: it finishes them or hands them back,
    and then they are queued.  Classes are drained in order, so the jobs of class c, with the target wait T, wait for
    the work W of the queued jobs of c and of the classes before it.  With jobs of s seconds that takes

        W / max(T, s)

    workers: each does T seconds of it in time, or one job, if that takes longer.  A busy worker, met at a random moment
    of a job of p seconds, comes free within T with the probability min(1, T / p), and counts for that much.  So

        more(c) = W / max(T, s) − the sum of min(1, T / p) over the busy workers

    are needed besides the busy ones, at least 0 and at most one for each of these jobs.  The class that needs most
    decides.

    The number is of all workers, not of those to be added: workers that still start are on their way to it, and are not
    asked for twice.  Workers that have withdrawn do no work, so each is replaced, but no more of them than workers are
    needed: when something is wrong with all of them, the fleet doubles and does not grow for ever.  ``max_workers``
    wins over everything.

    A class without a measurement takes the longest of the model's other classes, else ``expected_job_s``; or, while
    its first jobs run, the age of the oldest queued one if that is more: they take at least about so long.
    """
    seconds = {one.priority: job_seconds(load, one, rules) for one in load.classes}
    backlog_s = sum((one.queued + one.running) * seconds[one.priority] for one in load.classes)
    more, decisive = _more_workers(load, rules, seconds)
    needed = load.kept + more
    fewest, most = rules.bounds(load.model)
    working = max(needed, fewest)
    replaced = min(load.workers.withdrawn, working)
    wanted = working + replaced
    workers = min(wanted, most)

    sentences = [_jobs_sentence(load, backlog_s)]
    if decisive is not None:
        reason = Reason.UNMEASURED if decisive.job_s is None else Reason.BACKLOG
        sentences.append(_backlog_sentence(load, decisive, more, rules, seconds))
    elif load.running:
        reason = Reason.RUNNING
        sentences.append(_running_sentence(load))
    else:
        reason = Reason.IDLE
    if working > needed:
        reason = Reason.MINIMUM
        sentences.append(f"min_workers is {fewest}.")
    if replaced:
        one_or_many = "replaces one that has" if replaced == 1 else "replace as many that have"
        sentences.append(f"{_workers(replaced)} more {one_or_many} withdrawn.")
    if workers < wanted:
        reason = Reason.MAXIMUM
        sentences.append(f"That would make {wanted}; max_workers is {most}.")
    return DesiredWorkers(workers, reason, " ".join(sentences), backlog_s)


def job_seconds(load: ModelLoad, one: ClassLoad, rules: FleetRules) -> float:
    """Return how long a job of a class takes, as measured or assumed: see ``desired_workers``."""
    if one.job_s is not None:
        return max(one.job_s, SHORTEST_JOB_S)
    others = [other.job_s for other in load.classes if other.job_s is not None]
    if others:
        return max(*others, SHORTEST_JOB_S)
    return max(rules.expected_job_s, one.oldest_s if load.running else 0.0, SHORTEST_JOB_S)


def _more_workers(
    load: ModelLoad, rules: FleetRules, seconds: Mapping[Priority, float]
) -> tuple[int, ClassLoad | None]:
    """Return how many workers are needed besides the busy ones, and the class that decides it; None if none are."""
    most, decisive, work_s, queued = 0, None, 0.0, 0
    for one in load.classes:
        if not one.queued:
            continue
        job_s, wait_s = seconds[one.priority], rules.wait_s(one.priority)
        work_s += one.queued * job_s
        queued += one.queued
        come_free = sum(
            (busy.running - busy.draining) * min(1.0, wait_s / seconds[busy.priority]) for busy in load.classes
        )
        more = min(queued, math.ceil(work_s / max(wait_s, job_s) - come_free - ROUNDING))
        if more > most:
            most, decisive = more, one
    return most, decisive


def _jobs_sentence(load: ModelLoad, backlog_s: float) -> str:
    if not load.queued and not load.running:
        return "No job is queued or running."
    return f"{load.queued:,} queued and {load.running:,} running jobs are {backlog_s:,.0f} s of work for one worker."


def _running_sentence(load: ModelLoad) -> str:
    if not load.kept:
        return "Their workers shut down: they finish them, or hand them back."
    return "The workers that run them are enough."


def _backlog_sentence(
    load: ModelLoad, decisive: ClassLoad, more: int, rules: FleetRules, seconds: Mapping[Priority, float]
) -> str:
    job_s, wait_s = seconds[decisive.priority], rules.wait_s(decisive.priority)
    needed = (
        f"{more:,} {'is' if more == 1 else 'are'}" if load.kept else _workers(more) + (" is" if more == 1 else " are")
    )
    besides = f"Besides {_workers(load.kept)} that run one, " if load.kept else ""
    known = "measured" if decisive.job_s is not None else "assumed: none was measured yet"
    return (
        f"{besides}{needed} needed to start each queued one of class {decisive.priority} within {wait_s:g} s, "
        f"at {job_s:.3g} s a job ({known})."
    )


def _workers(count: int) -> str:
    return f"{count:,} worker" if count == 1 else f"{count:,} workers"
