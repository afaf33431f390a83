"""Check the promises against the history of a run."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from maskfleet.jobs.ledger.clock import RESPITE_MS, STEP_MS
from tests.faults.history import (
    Accepted,
    Attempted,
    BatchAccepted,
    BatchShown,
    Believed,
    Broke,
    CancelAsked,
    Counted,
    LeftOver,
    Notified,
    Reference,
    Refused,
    Shown,
    Sight,
    Stored,
)

ENDED = {"succeeded", "failed", "canceled", "expired"}
STARTED = "job.started"
#: Jobs that kill the process that fetches their image; that exceed their own time limit; that hang in a call which
#: cannot be interrupted; that make their worker lose its device.
POISONED, TOO_LONG, HUNG, DEVICE_LOST = "poisoned", "too long", "hung", "device lost"
#: The kinds that are expected to fail, with the error code.
FAILING_KINDS = {
    POISONED: "attempts_exhausted",
    TOO_LONG: "timeout",
    HUNG: "timeout",
    DEVICE_LOST: "device_lost",
}
#: What a fault may break, and the outcomes of an attempt that it explains; a worker's only on its own node.
HARMS = {
    "worker": {"lease_ran_out"},
    "node": {"lease_ran_out", "store_misconfigured"},
    "redis": {"lease_ran_out", "queue_unavailable"},
    "store": {"store_unavailable"},
    "drain": {"drained"},
    "nothing": set(),
}
#: Outcomes that need a fault, whatever becomes of the job later.
NEEDS_A_FAULT = set[str]().union(*HARMS.values())
#: Outcomes that are never charged to the job: with enough attempts left, it must not fail because of them.
UNCHARGED = {"store_unavailable", "queue_unavailable", "drained"} | {
    *("store_misconfigured", "machine_broken", "device_lost", "decoder_broken", "image_not_found", "source_unreachable")
}
#: How long after a fault an attempt may begin and meet its aftermath: a claim that a node sent while it was cut off
#: arrives late, and nobody receives the reply; connections are opened again.
AFTERMATH_S = 5.0
#: A lease that nobody renews any more runs out after LEASE_S (2 s here); the couriers look every 0.2 s.  Two processes
#: on a busy machine may need the rest.
PUT_BACK_S = 6.0
#: So long after an outage, a courier may not have found Redis again: by then the next one may have begun.
FOUND_AGAIN_S = 1.0
#: Redis saves and replicates with some delay even when it is well.
LOST_BEFORE_S = 1.0
#: An accepted cancellation takes effect with the next beat (0.3 s here) and batch of points.
CANCEL_S = 3.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a history.  Each entry of ``broken`` describes one broken promise.

    untold: jobs and batches that ended, but whose end was reported to no receiver.
    exposed: accepted jobs of which Redis itself may have lost something: it was emptied, or failed over to a replica
    that lagged.  taken: those of them that are gone.
    """

    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    stuck: tuple[str, ...]
    untold: tuple[str, ...]
    broken: tuple[str, ...]
    exposed: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        return not self.broken


def check(history: Sequence[Sight]) -> Verdict:
    """Check a history against the promises."""
    trial = _Trial(history)
    lost, stuck = tuple(trial.lost()), tuple(trial.stuck())
    doubled, untold = tuple(trial.doubled()), tuple(trial.untold())
    broken = (
        *(f"{job} was accepted and is gone" for job in lost),
        *(f"{job} was accepted and never ended" for job in stuck),
        *doubled,
        *trial.torn_batches(),
        *trial.changed(),
        *trial.wrong_results(),
        *trial.wrong_holders(),
        *(f"the end of {subject} was never told" for subject in untold),
        *trial.badly_signed(),
        *trial.unexplained_failures(),
        *trial.unexplained_attempts(),
        *trial.wrong_charges(),
        *trial.late_returns(),
        *trial.forgotten_cancels(),
        *trial.keys_that_stand_for_several(),
        *trial.leftovers(),
        *trial.wrong_counts(),
    )
    exposed = tuple(trial.accepted.keys() & trial.forgotten)
    taken = tuple(job for job in exposed if trial.end_of(job) in ("", "absent"))
    return Verdict(lost, doubled, stuck, untold, broken, exposed, taken)


class _Trial:
    def __init__(self, history: Sequence[Sight]) -> None:
        self.accepted = {sight.job: sight for sight in history if isinstance(sight, Accepted)}
        self.keys: dict[str, set[str]] = defaultdict(set)
        self.shown: dict[str, list[Shown]] = defaultdict(list)
        self.notified: dict[str, list[Notified]] = defaultdict(list)
        self.attempts: dict[str, list[Attempted]] = defaultdict(list)
        self.believed: dict[str, list[Believed]] = defaultdict(list)
        self.stored: dict[str, Stored] = {}
        self.manifests: dict[str, set[str]] = defaultdict(set)
        self.references = {sight.kind: sight.masks for sight in history if isinstance(sight, Reference)}
        self.faults = [sight for sight in history if isinstance(sight, Broke) and sight.acted]
        self.pauses = tuple(_pauses(self.faults))
        self.left = [sight for sight in history if isinstance(sight, LeftOver)]
        self.canceled = {sight.job: sight for sight in history if isinstance(sight, CancelAsked)}
        self.refused = [sight for sight in history if isinstance(sight, Refused)]
        self.counted = next((sight for sight in history if isinstance(sight, Counted)), None)
        self.batches = {sight.batch: sight for sight in history if isinstance(sight, BatchAccepted)}
        self.batches_shown = {sight.batch: sight for sight in history if isinstance(sight, BatchShown)}
        for sight in history:
            if isinstance(sight, Accepted):
                self.keys[sight.key].add(sight.job)
            elif isinstance(sight, BatchAccepted):
                self.keys[sight.key].add(sight.batch)
            elif isinstance(sight, Shown):
                self.shown[sight.job].append(sight)
            elif isinstance(sight, Notified):
                self.notified[sight.job].append(sight)
            elif isinstance(sight, Stored):
                self.stored[sight.job] = sight
                self.manifests[sight.job] |= {sight.manifest} - {""}
            elif isinstance(sight, Attempted):
                self.attempts[sight.job].append(sight)
            elif isinstance(sight, Believed):
                self.believed[sight.job].append(sight)
        #: The jobs and batches whose endpoint answered 410.
        told_410 = {subject for subject, sights in self.notified.items() if any(one.answered == 410 for one in sights)}
        self.gone = told_410 | {self.accepted[job].batch for job in told_410 & self.accepted.keys()}
        self.forgotten = set(self._forgotten(history))

    def _forgotten(self, history: Sequence[Sight]) -> Iterator[str]:
        """Find the jobs and batches of which Redis may have lost something: the last second before a failover, or all.

        What is true of these depends on what was lost: they may be gone, or happen again.  They must not be stuck, and
        a success must still have a whole result.
        """
        for fault in self.faults:
            if fault.loses_since is None:
                continue
            touched = {
                subject
                for sight in history
                if fault.loses_since - LOST_BEFORE_S <= sight.at <= fault.until + AFTERMATH_S
                for subject in (getattr(sight, "job", ""), getattr(sight, "batch", ""))
            }
            for job, attempts in self.attempts.items():
                if any(
                    one.started <= fault.until and (one.ended or one.at) >= fault.loses_since - LOST_BEFORE_S
                    for one in attempts
                ):
                    touched.add(job)
            for batch, accepted in self.batches.items():
                if batch in touched or touched & set(accepted.jobs):
                    yield from (batch, *accepted.jobs)
            yield from touched - {""}

    def end_of(self, job: str) -> str:
        """Return the state in which a job was last seen; empty if it was never seen."""
        return self._last_shown(job).status

    def _last_shown(self, job: str) -> Shown:
        """Return its state when last polled: every job is polled once more after the run."""
        return next((sight for sight in reversed(self.shown[job]) if sight.way == "asked"), Shown(job=job, status=""))

    def lost(self) -> Iterator[str]:
        return (job for job in self.accepted.keys() - self.forgotten if self.end_of(job) in ("", "absent"))

    def stuck(self) -> Iterator[str]:
        return (job for job in self.accepted if self.end_of(job) not in {"", "absent", *ENDED})

    def doubled(self) -> Iterator[str]:
        """Find an end that was seen twice: in two states, under two webhook ids, with two manifests."""
        for job in (*self.accepted, *self.batches):
            if job in self.forgotten:
                continue
            ends = {sight.status for sight in self.shown[job] if sight.status in ENDED}
            told = [sight for sight in self.notified[job] if sight.event != STARTED]
            ends |= {sight.status for sight in told}
            if len(ends) > 1:
                yield f"{job} ended as {' and as '.join(sorted(ends))}"
            starts = [sight for sight in self.notified[job] if sight.event == STARTED]
            for what, sights in (("end", told), ("start", starts)):
                ids = {sight.webhook_id for sight in sights}
                if len(ids) > 1:
                    yield f"the {what} of {job} was told under several ids: {', '.join(sorted(ids))}"
                elif len({sight.body for sight in sights}) > 1:
                    yield f"the {what} of {job} was told in different words"
            if len(self.manifests[job]) > 1:
                yield f"{job} had several manifests, one after the other"

    def changed(self) -> Iterator[str]:
        """Find a state that came after the end; or an event that tells a follower of the job nothing new.

        Polling and following are each in order, but may see a change at different times.  A version is sent
        once, however often its stream breaks off: a client that reconnects says which one it has.  A queued job is sent
        again as its place moves, under the same version; so a place shown by an earlier stream may appear again.
        """
        for job in self.accepted.keys() - self.forgotten:
            for way in ("asked", "followed"):
                sights = [sight for sight in self.shown[job] if sight.way == way]
                ended = next((number for number, sight in enumerate(sights) if sight.status in ENDED), len(sights))
                if late := [sight for sight in sights[ended:] if sight.status not in ENDED]:
                    yield f"{job} was {late[0].status} after its end"
            followed = [sight for sight in self.shown[job] if sight.way == "followed"]
            for before, sight in pairwise(followed):
                if sight.version < before.version:
                    yield f"{job} went back from version {before.version} to {sight.version}"
                moved = sight.status == "queued" and (sight.place, sight.stream) != (before.place, before.stream)
                if sight.version == before.version and not moved:
                    yield f"version {sight.version} of {job} was sent twice to who had seen it"

    def wrong_results(self) -> Iterator[str]:
        for job, accepted in self.accepted.items():
            if self.end_of(job) != "succeeded":
                continue
            stored = self.stored.get(job)
            if stored is None or not stored.manifest:
                yield f"{job} succeeded without a manifest"
            elif stored.attempt not in {attempt.number for attempt in self.attempts[job]}:
                yield f"{job} has the manifest of attempt {stored.attempt}, which the ledger does not know"
            elif not _is_of_one_attempt(stored):
                yield f"{job} has the manifest of attempt {stored.attempt}, with objects of {', '.join(stored.folders)}"
            elif not stored.whole:
                yield f"{job} has a manifest whose objects are not what it says"
            elif stored.masks != self.references.get(accepted.kind):
                yield f"{job} has other masks than a job of its kind without faults"

    def wrong_holders(self) -> Iterator[str]:
        """Find a worker that was told that its attempt ended the job, while the ledger says that another one did."""
        for job, ends in self.believed.items():
            for end in ends if job not in self.forgotten else ():
                same = [one for one in self.attempts[job] if (one.number, one.worker) == (end.number, end.worker)]
                if not any(attempt.outcome == end.outcome for attempt in same):
                    yield f"{end.worker} ended {job} in attempt {end.number}, which it no longer held"

    def untold(self) -> Iterator[str]:
        """Find jobs and batches whose end did not arrive, although their endpoint never answered 410."""
        for subject, endpoint in self._ended_and_hooked():
            if subject in self.forgotten:
                continue
            told = any(200 <= sight.answered < 300 for sight in self.notified[subject] if sight.event != STARTED)
            if not told and endpoint not in self.gone:  # after a 410 nothing more is sent
                yield subject

    def badly_signed(self) -> Iterator[str]:
        for subject, _ in self._ended_and_hooked():
            owner = (self.accepted.get(subject) or self.batches[subject]).tenant
            if any(sight.signed_for != owner for sight in self.notified[subject]):
                yield f"the end of {subject} was told under a signature that does not hold"

    def _ended_and_hooked(self) -> Iterator[tuple[str, str]]:
        """Return what has ended and asked for a webhook, with its endpoint: a batch's is that of its jobs."""
        for job, accepted in self.accepted.items():
            if accepted.hooked and self.end_of(job) in ENDED:
                yield job, accepted.batch or job
        for batch, accepted_batch in self.batches.items():
            if all(self.end_of(job) in ENDED for job in accepted_batch.jobs):
                yield batch, batch

    def torn_batches(self) -> Iterator[str]:
        """Find a batch that was partly recorded, or whose counts do not match how its jobs ended."""
        for batch, accepted in self.batches.items():
            if batch in self.forgotten:
                continue
            if len(set(accepted.jobs)) != accepted.images:
                yield f"{batch} of {accepted.images} images has {len(set(accepted.jobs))} jobs"
            shown = self.batches_shown.get(batch)
            if shown is None or shown.status == "absent":
                yield f"{batch} was accepted and is gone"
                continue
            if shown.jobs != accepted.jobs:
                yield f"{batch} has other jobs than it was accepted with"
            ends = Counter(self.end_of(job) for job in accepted.jobs)
            if shown.status != "completed" and ends.keys() <= ENDED:
                yield f"{batch} is {shown.status}, and all its jobs have ended"
            for sight in (shown, *self.notified[batch]):
                if {status: count for status, count in sight.counts.items() if count} != ends:
                    yield f"{batch} was said to have {sight.counts}, and has {dict(ends)}"

    def unexplained_failures(self) -> Iterator[str]:
        for job, accepted in self.accepted.items():
            end = self.end_of(job)
            if job in self.forgotten:
                continue
            if end == "canceled" and job not in self.canceled:
                yield f"{job} was canceled, and nobody asked for it"
            kind, _, _ = accepted.kind.partition(" on ")
            wanted, error = FAILING_KINDS.get(kind), self._last_shown(job).error
            if wanted and end in ("succeeded", "expired"):
                yield f"{job} is {kind} and ended as {end} {error}"
            elif end in ("failed", "expired") and error != wanted:
                tried = self.attempts[job]
                broken = [one for one in tried if one.outcome in UNCHARGED or not self._is_explained(one, wanted)]
                if broken or not tried or end == "expired":
                    yield f"{job} ended as {end} ({error}), which no fault explains"

    def unexplained_attempts(self) -> Iterator[str]:
        """Find an attempt that broke off without a fault of its node, of Redis or of the store at that time."""
        for job, accepted in self.accepted.items():
            kind, _, _ = accepted.kind.partition(" on ")
            if kind in FAILING_KINDS:  # these break off by themselves
                continue
            for attempt in self.attempts[job] if job not in self.forgotten else ():
                if _code(attempt) in NEEDS_A_FAULT and not self._is_explained(attempt, None):
                    yield f"attempt {attempt.number} at {job} ended as {attempt.outcome}, which no fault explains"

    def wrong_charges(self) -> Iterator[str]:
        """Find an attempt that was charged although an outage, its node or a drain ended it; or one that had to be.

        The number of an attempt counts those that were charged before it.
        """
        for job in self.accepted.keys() - self.forgotten:
            for attempt, following in pairwise(sorted(self.attempts[job], key=lambda one: one.started)):
                charged = attempt.outcome not in UNCHARGED
                if following.number != attempt.number + charged:
                    was = "was not charged" if charged else "was charged"
                    yield f"attempt {attempt.number} at {job}, which ended as {attempt.outcome}, {was}"

    def late_returns(self) -> Iterator[str]:
        """Find a job that was not put back soon after its attempt's lease could last have been renewed."""
        for job in self.accepted.keys() - self.forgotten:
            for attempt in self.attempts[job]:
                if _code(attempt) != "lease_ran_out" or attempt.ended is None:
                    continue
                renewed = max(map(self._renewable_until, self._met(attempt)), default=attempt.started)
                late = attempt.ended - max(renewed, attempt.started)
                if late > PUT_BACK_S:
                    yield f"{job} was put back {late:.1f} s after its node was lost"

    def _renewable_until(self, fault: Broke) -> float:
        """Return until when a lease may be renewed after a fault.

        After a pause of Redis the couriers give all leases a respite, for workers to renew them (decision 0040).
        """
        respite = STEP_MS / 1000 - FOUND_AGAIN_S
        paused = any(began <= fault.at <= over and over - began > respite for began, over in self.pauses)
        return fault.until + (RESPITE_MS / 1000 if paused and fault.harms == "redis" else 0.0)

    def forgotten_cancels(self) -> Iterator[str]:
        """Find a job that went on to another end although a request to cancel it had been accepted."""
        for job, asked in self.canceled.items():
            end, tried = self.end_of(job), self.attempts[job]
            kind = self.accepted[job].kind.partition(" on ")[0] if job in self.accepted else ""
            if end not in ENDED or end == "canceled" or kind in FAILING_KINDS:
                continue
            if not asked.accepted or not tried or job in self.forgotten:
                continue
            ended = tried[-1].ended or tried[-1].at
            # While Redis does not answer, nobody can tell the worker.
            outages = (fault.until for fault in self.faults if fault.harms == "redis" and fault.at <= ended)
            told = max((asked.at, *outages))
            if ended > told + CANCEL_S:
                yield f"{job} {end} {ended - asked.at:.1f} s after its cancellation was accepted"

    def _is_explained(self, attempt: Attempted, wanted: str | None) -> bool:
        """Return whether an attempt failed as its kind does, or a fault active at the time can have caused it."""
        return attempt.outcome == wanted or any(True for _ in self._met(attempt))

    def _met(self, attempt: Attempted) -> Iterator[Broke]:
        """Yield the faults that an attempt met and that can end one as it ended."""
        ended = attempt.ended or attempt.at
        for fault in self.faults:
            may_end_it = _code(attempt) in HARMS[fault.harms] and fault.node in ("", attempt.worker)
            if may_end_it and fault.at <= ended and attempt.started <= fault.until + AFTERMATH_S:
                yield fault

    def keys_that_stand_for_several(self) -> Iterator[str]:
        return (
            f"the key {key} stands for {len(ids)}: {', '.join(sorted(ids))}"
            for key, ids in self.keys.items()
            if len(ids - self.forgotten) > 1
        )

    def leftovers(self) -> Iterator[str]:
        for sight in self.left:
            fewest = max(0, sight.expected - len(self.forgotten)) if sight.of_records else sight.expected
            if not fewest <= sight.found <= sight.expected:
                yield f"{sight.what}: {sight.found} are left, and should be {sight.expected}"

    def wrong_counts(self) -> Iterator[str]:
        """Check that each accepted job was created once and ended once; whatever got a 503 left nothing behind."""
        for sight in self.refused:
            if sight.status not in (0, 429, 503):
                yield f"a submit was answered with {sight.status} {sight.code}"
        if self.counted is None:
            return
        created = self.counted.totals.get("created", 0)
        if not len(self.accepted.keys() - self.forgotten) <= created <= len(self.accepted):
            yield f"{created} jobs were created and {len(self.accepted)} accepted"
        ended = sum(self.counted.totals.get(status, 0) for status in ENDED)
        if ended != created:
            yield f"{ended} ends were counted for {created} jobs"


def _is_of_one_attempt(stored: Stored) -> bool:
    """Return whether all of a manifest's objects are in one folder, that of the attempt it names."""
    return len(stored.folders) == 1 and bool(
        re.fullmatch(rf"attempt-{stored.attempt}-\d+-[0-9a-f]{{8}}", stored.folders[0])
    )


def _pauses(faults: Sequence[Broke]) -> Iterator[tuple[float, float]]:
    """Yield when Redis was away, from and until: outages between which no courier need have found it are one."""
    outages = sorted((fault.at, fault.until) for fault in faults if fault.harms == "redis")
    while outages:
        began, over = outages.pop(0)
        while outages and outages[0][0] - over <= FOUND_AGAIN_S:
            over = max(over, outages.pop(0)[1])
        yield began, over


def _code(attempt: Attempted) -> str:
    """Return an attempt's outcome; the last one's may be the verdict on all of them."""
    return "lease_ran_out" if attempt.outcome == "attempts_exhausted" else attempt.outcome or ""
