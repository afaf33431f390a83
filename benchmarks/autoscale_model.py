"""A cluster of workers in simulated time, and the autoscalers that size it.

What is modelled of Kubernetes and KEDA is what their documentation says, with its defaults:

- HorizontalPodAutoscaler: every 15 s, desired = ceil(metric / target) for an average value, or ceil(replicas × metric /
  target) for CPU; nothing within a tolerance of 0.1; up by 100 % or 4 pods in 15 s, whichever is more, down to the
  highest recommendation of the last 300 s; pods that are not ready count as using no CPU when it scales up.
  https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
- KEDA: a look every 30 s switches between none and one replica, back to none after 300 s without work; from one on, the
  HorizontalPodAutoscaler asks for the trigger's value.
  https://keda.sh/docs/latest/reference/scaledobject-spec/, https://keda.sh/docs/latest/scalers/redis-lists/
- A ReplicaSet that shrinks removes pods that are not ready first, then any; it does not know which are busy.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from maskfleet.jobs.fleet import ClassLoad, FleetRules, ModelLoad, WorkerCounts, desired_workers
from maskfleet.jobs.schema.spec import Priority

SYNC_S, TOLERANCE, STABILIZATION_S = 15.0, 0.1, 300.0
UP_FACTOR, UP_PODS = 2.0, 4
POLL_S, COOLDOWN_S = 30.0, 300.0
#: What a worker that is told to stop may still finish: MASKFLEET_DRAIN_GRACE_S.
DRAIN_GRACE_S = 25.0
#: The ledger's moving average: jobs/ledger/lua/jobs.lua.
PACE_KEPT = 0.8


@dataclass(frozen=True)
class Work:
    """Jobs: when each arrives, and how long it takes; in seconds."""

    arrivals: list[float]
    services: list[float]

    @property
    def gpu_s(self) -> float:
        return sum(self.services)


@dataclass(frozen=True)
class Seen:
    """What an autoscaler may see.  cpu: the mean use of the ready workers since it looked last, from 0 to 1."""

    queued: int
    running: int
    draining: int
    oldest_s: float
    job_s: float | None
    starting: int
    ready: int
    cpu: float


#: Returns how many replicas there should be, of what is seen and how many there are; before all limits of the HPA.
Trigger = Callable[[Seen, int], int]


def within_tolerance(ratio: float) -> bool:
    return abs(ratio - 1) <= TOLERANCE


def of_desired_workers(rules: FleetRules) -> Trigger:
    """KEDA's ``metrics-api`` on /v1/fleet/model, with a target of 1."""

    def trigger(seen: Seen, replicas: int) -> int:
        one = ClassLoad(Priority.NORMAL, seen.queued, seen.running, seen.draining, seen.oldest_s, seen.job_s)
        load = ModelLoad("m", (one,), WorkerCounts(starting=seen.starting, ready=seen.ready))
        return _average_value(desired_workers(load, rules).workers, 1, replicas)

    return trigger


def of_list_length(length: float) -> Trigger:
    """KEDA's ``redis`` on the list of a queue in which each job is a message; length: its ``listLength``."""
    return lambda seen, replicas: _average_value(seen.queued, length, replicas)


def of_cpu(target: float) -> Trigger:
    """A HorizontalPodAutoscaler on CPU; a busy worker uses all of what it requests."""

    def trigger(seen: Seen, replicas: int) -> int:
        if not seen.ready:
            return replicas
        ratio = seen.cpu / target
        if within_tolerance(ratio):
            return replicas
        if ratio < 1 or not seen.starting:
            return math.ceil(ratio * seen.ready)
        careful = seen.cpu * seen.ready / (seen.ready + seen.starting) / target
        if within_tolerance(careful) or careful < 1:
            return replicas
        return max(replicas, math.ceil(careful * (seen.ready + seen.starting)))

    return trigger


def _average_value(value: float, target: float, replicas: int) -> int:
    if replicas and within_tolerance(value / (target * replicas)):
        return replicas
    return math.ceil(value / target)


@dataclass
class Autoscaler:
    """A trigger, with the limits of the HPA and, if it may scale to zero, KEDA's switch."""

    name: str
    trigger: Trigger
    to_zero: bool
    stabilization_s: float = STABILIZATION_S
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _active_at: float = -math.inf
    _polled_at: float = -math.inf

    def replicas(self, now: float, seen: Seen, replicas: int, most: int) -> int:
        """Return how many replicas there are from now on."""
        wanted = self.trigger(seen, replicas)
        if self.to_zero and now - self._polled_at >= POLL_S:
            is_first = self._polled_at == -math.inf
            self._polled_at = now
            if wanted > 0 or (is_first and replicas):
                self._active_at = now
        if replicas == 0:
            return 1 if not self.to_zero or self._active_at == now else 0
        if self.to_zero and now - self._active_at > COOLDOWN_S:
            self._recommended.clear()
            return 0
        if not self._recommended:  # what there is counts as the first recommendation
            self._recommended.append((now, replicas))
        self._recommended.append((now, max(1, min(wanted, most))))
        while self._recommended[0][0] < now - self.stabilization_s:
            self._recommended.popleft()
        wanted = self._recommended[-1][1]
        if wanted > replicas:
            return min(wanted, max(math.ceil(UP_FACTOR * replicas), replicas + UP_PODS), most)
        return min(replicas, max(one for _, one in self._recommended))


@dataclass
class Worker:
    """job: the number of the one it runs.  until: when that ends."""

    number: int
    born: float
    loaded: bool = False
    job: int | None = None
    began: float = 0.0
    until: float = 0.0
    drains: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Moment:
    """What a plot shows of one look."""

    at: float
    workers: int
    ready: int
    queued: int
    running: int


@dataclass(frozen=True)
class Outcome:
    """waits: of each job, until it began the run that ended.  gpu_s: of all workers, from their creation."""

    waits: list[float]
    gpu_s: float
    handed_back: int
    moments: list[Moment]


class Cluster:
    """Workers that take jobs in their order, under an autoscaler."""

    def __init__(self, work: Work, scaler: Autoscaler, *, cold_s: float, most: int, replicas: int = 0) -> None:
        """cold_s: from a pod's creation until its model is loaded, a fifth more or less.  replicas: at first."""
        self._work, self._scaler, self._cold_s, self._most = work, scaler, cold_s, most
        self._random = random.Random(7)
        self._now = 0.0
        self._events: list[tuple[float, int, str, Worker | None]] = []
        self._number = count()
        self._queue: deque[int] = deque()
        self._idle: list[Worker] = []
        #: All of them by number, and those that the replica set counts: none that drains.
        self._all: dict[int, Worker] = {}
        self._workers: dict[int, Worker] = {}
        self._running = 0
        self._pace: float | None = None
        self._waits: list[float] = [math.nan] * len(work.arrivals)
        self._left = len(work.arrivals)
        self._gpu_s = 0.0
        self._handed_back = 0
        self._busy_area = self._ready_area = 0.0
        self._ready_count = self._busy_count = 0
        self._moments: list[Moment] = []
        for _ in range(replicas):
            self._create(0.0)

    def run(self) -> Outcome:
        """Run until every job has ended."""
        arrivals, place = self._work.arrivals, 0
        self._at(0.0, "sync", None)
        while self._left:
            if place < len(arrivals) and arrivals[place] <= self._events[0][0]:
                self._advance(arrivals[place])
                self._queue.append(place)
                place += 1
                self._assign()
                continue
            at, _, what, worker = heapq.heappop(self._events)
            self._advance(at)
            self._happen(what, worker)
        for worker in self._all.values():
            self._gpu_s += self._now - worker.born
        return Outcome(self._waits, self._gpu_s, self._handed_back, self._moments)

    def _at(self, when: float, what: str, worker: Worker | None) -> None:
        heapq.heappush(self._events, (when, next(self._number), what, worker))

    def _advance(self, to: float) -> None:
        self._busy_area += self._busy_count * (to - self._now)
        self._ready_area += self._ready_count * (to - self._now)
        self._now = to

    def _happen(self, what: str, worker: Worker | None) -> None:
        if worker is None:
            self._look()
            self._at(self._now + SYNC_S, "sync", None)
        elif worker.gone:
            return
        elif what == "ready":
            worker.loaded = True
            self._ready_count += 1
            self._idle.append(worker)
            self._assign()
        elif what == "grace":
            self._hand_back(worker)
        elif worker.until <= self._now:
            self._finish(worker)

    def _assign(self) -> None:
        while self._queue and self._idle:
            worker = self._idle.pop()
            if worker.gone or worker.drains:
                continue
            job = self._queue.popleft()
            worker.job, worker.began = job, self._now
            worker.until = self._now + self._work.services[job]
            self._running += 1
            self._busy_count += 1
            self._at(worker.until, "end", worker)

    def _finish(self, worker: Worker) -> None:
        assert worker.job is not None
        took_s = self._now - worker.began
        self._waits[worker.job] = worker.began - self._work.arrivals[worker.job]
        self._pace = took_s if self._pace is None else PACE_KEPT * self._pace + (1 - PACE_KEPT) * took_s
        self._left -= 1
        self._running -= 1
        worker.job = None
        if worker.drains:
            self._remove(worker)
        else:
            self._busy_count -= 1
            self._idle.append(worker)
            self._assign()

    def _hand_back(self, worker: Worker) -> None:
        assert worker.job is not None
        self._queue.appendleft(worker.job)
        self._handed_back += 1
        self._running -= 1
        self._remove(worker)
        self._assign()

    def _create(self, cold_s: float) -> None:
        worker = Worker(next(self._number), self._now)
        self._all[worker.number] = self._workers[worker.number] = worker
        self._at(self._now + cold_s * self._random.uniform(0.8, 1.2), "ready", worker)

    def _remove(self, worker: Worker) -> None:
        worker.gone = True
        self._gpu_s += self._now - worker.born
        del self._all[worker.number]

    def _shrink(self, by: int) -> None:
        alive = list(self._workers.values())
        self._random.shuffle(alive)
        alive.sort(key=lambda one: one.loaded)
        for worker in alive[:by]:
            del self._workers[worker.number]
            self._ready_count -= worker.loaded
            if worker.job is None:
                self._remove(worker)
                continue
            self._busy_count -= 1
            worker.drains = True
            if worker.until - self._now > DRAIN_GRACE_S:
                self._at(self._now + DRAIN_GRACE_S, "grace", worker)
        self._idle = [worker for worker in self._idle if not worker.gone and not worker.drains]

    def _look(self) -> None:
        replicas = len(self._workers)
        seen = Seen(
            queued=len(self._queue),
            running=self._running,
            draining=len(self._all) - replicas,
            oldest_s=self._now - self._work.arrivals[self._queue[0]] if self._queue else 0.0,
            job_s=self._pace,
            starting=replicas - self._ready_count,
            ready=self._ready_count,
            cpu=self._busy_area / self._ready_area if self._ready_area else 0.0,
        )
        self._busy_area = self._ready_area = 0.0
        self._moments.append(Moment(self._now, len(self._all), self._ready_count, len(self._queue), self._running))
        wanted = self._scaler.replicas(self._now, seen, replicas, self._most)
        for _ in range(wanted - replicas):
            self._create(self._cold_s)
        if wanted < replicas:
            self._shrink(replicas - wanted)


def arrivals_at(rate: Callable[[float], float], highest: float, duration_s: float, seed: int) -> Iterator[float]:
    """Yield the times of a Poisson process whose rate changes (thinning: Lewis and Shedler 1979)."""
    chance, at = random.Random(seed), 0.0
    while True:
        at += chance.expovariate(highest)
        if at > duration_s:
            return
        if chance.random() * highest <= rate(at):
            yield at
