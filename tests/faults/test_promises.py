"""The checker finds each broken promise in a hand-made history."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.history import (
    Accepted,
    Attempted,
    BatchAccepted,
    BatchShown,
    Believed,
    Broke,
    CancelAsked,
    Counted,
    History,
    LeftOver,
    Notified,
    Reference,
    Refused,
    Shown,
    Sight,
    Stored,
)
from tests.faults.promises import POISONED, check

ACCEPTED = Accepted(at=1, key="k", job="a", kind="box")
QUEUED = Shown(at=2, job="a", status="queued")
PROCESSING = Shown(at=3, job="a", status="processing")
SUCCEEDED = Shown(at=4, job="a", status="succeeded")
FAILED = Shown(at=4, job="a", status="failed", error="attempts_exhausted")
TOLD = Notified(at=5, job="a", webhook_id="msg_a_1", status="succeeded", answered=204)
BEGUN = Notified(at=3, job="a", webhook_id="msg_a_1_started", status="processing", answered=204, event="job.started")
TOLD_FAILED = replace(TOLD, status="failed")
STORED = Stored(at=6, job="a", masks="digest", manifest="first", attempt=2, folders=("attempt-2-3-0123abcd",))
REFERENCE = Reference(at=0, kind="box", masks="digest")
COUNTED = Counted(at=7, totals={"created": 1, "succeeded": 1})
BROKEN_OFF = Attempted(at=7, job="a", number=3, worker="node-1", started=2, ended=4, outcome="attempts_exhausted")
FIRST = Attempted(at=7, job="a", number=1, worker="node-1", started=2, ended=3, outcome="lease_ran_out")
SECOND = replace(FIRST, number=2, worker="node-2", started=3, ended=4, outcome="succeeded")
KILLED = Broke(at=3, name="child killed", until=3.5, harms="worker", acted=True, node="node-1")
RESTARTED = Broke(at=3, name="redis killed", until=3.5, harms="redis", acted=True)
#: What broke the first attempt off.
LOST_NODE = replace(KILLED, at=2, until=2)
ENDED_IT = Believed(at=4, job="a", number=2, worker="node-2", outcome="succeeded")
GOOD = (REFERENCE, ACCEPTED, QUEUED, PROCESSING, SUCCEEDED, TOLD, STORED, LOST_NODE, FIRST, SECOND, ENDED_IT, COUNTED)


def followed(*sights: Shown) -> tuple[Shown, ...]:
    """Return the same observations as events of a stream."""
    return tuple(replace(sight, way="followed", version=version) for version, sight in enumerate(sights))


def waiting(*places: tuple[int, int]) -> tuple[Shown, ...]:
    """One version of a job that waits, as events: each its place in the queue, and the number of its stream."""
    return tuple(replace(QUEUED, way="followed", version=1, place=place, stream=stream) for place, stream in places)


def without(*sights: Sight) -> tuple[Sight, ...]:
    return tuple(sight for sight in GOOD if sight not in sights)


#: Redis lost what it wrote in that second.
LOSING = Broke(at=3, name="redis fails over", until=4, harms="redis", acted=True, loses_since=3)
#: Another job, which kept every promise later.
OTHER = (
    *(replace(sight, at=sight.at + 90, job="b") for sight in (SUCCEEDED, TOLD, STORED)),
    replace(SECOND, job="b", started=93, ended=94),
    replace(COUNTED, totals={"created": 2, "succeeded": 2}),
)


def uncharged(outcome: str) -> tuple[Attempted, ...]:
    """Return two attempts of which the first was not charged, so that the second has the same number."""
    return replace(FIRST, number=2, outcome=outcome), SECOND


#: A job that ended as failed; what became of its attempts is to be added.
ONE_END = (SUCCEEDED, TOLD, STORED, LOST_NODE, FIRST, SECOND, ENDED_IT, COUNTED)
FAILING = (*without(*ONE_END), FAILED, TOLD_FAILED)

BATCH = BatchAccepted(at=1, key="all", batch="batch", images=2, jobs=("a", "b"))
COMPLETED = BatchShown(batch="batch", status="completed", jobs=("a", "b"), counts={"succeeded": 2, "failed": 0})
TOLD_BATCH = replace(TOLD, job="batch", webhook_id="msg_batch_1", status="completed", counts={"succeeded": 2})
#: A second job as the first, and the batch of both.
OF_BATCH = (
    *(replace(sight, batch="batch") if isinstance(sight, Accepted) else sight for sight in without(COUNTED)),
    replace(ACCEPTED, job="b", key="k 2", batch="batch"),
    *(replace(sight, job="b") for sight in (SUCCEEDED, TOLD, STORED, FIRST, SECOND, ENDED_IT)),
)
GOOD_BATCH = (BATCH, *OF_BATCH, COMPLETED, TOLD_BATCH)


@pytest.mark.parametrize(
    "history",
    [
        GOOD,
        # The receiver failed twice, and was told again under the same id.
        (*GOOD, replace(TOLD, answered=500), replace(TOLD, answered=0)),
        # Its node was lost while Redis was away for so long that all leases got a respite.
        (*without(FIRST, LOST_NODE), replace(FIRST, ended=27), replace(RESTARTED, at=0, until=7)),
        # Or it was away twice, for shorter, with no time to find it in between.
        (
            *without(FIRST, LOST_NODE),
            replace(FIRST, ended=25),
            *(replace(RESTARTED, at=at, until=at + 2.4) for at in (0, 2.9)),
        ),
        # It wants no more.
        (*without(TOLD), replace(TOLD, answered=410)),
        (*without(TOLD), replace(BEGUN, answered=410)),
        # It is told of the start, too.
        (*GOOD, replace(BEGUN, answered=500), BEGUN),
        # The caller was not answered, or asked to come again, and sent the job once more.
        (Refused(key="k", status=503, code="queue_unavailable"), Refused(key="k", status=0, code=""), *GOOD, ACCEPTED),
        # Who follows its stream is told later than who asks.
        (*GOOD, *followed(QUEUED, PROCESSING, SUCCEEDED)),
        # While a job waits, its place is sent as it moves; a stream that was lost may have sent another meanwhile.
        (*GOOD, *waiting((3, 0), (2, 0), (4, 0), (3, 1), (3, 2))),
        # All attempts met a fault that kills workers.
        (*FAILING, BROKEN_OFF, KILLED),
        # Or one of Redis, which every node meets, and some time later still.
        (*FAILING, BROKEN_OFF, RESTARTED),
        (
            *FAILING,
            replace(BROKEN_OFF, started=8, ended=12),
            RESTARTED,
        ),
        # The job kills its workers itself.
        (*without(ACCEPTED, *ONE_END), replace(ACCEPTED, kind=POISONED), FIRST, FAILED, TOLD_FAILED),
        # It was canceled, or had ended before the cancellation could take effect, …
        (
            *without(*ONE_END),
            CancelAsked(job="a"),
            replace(SUCCEEDED, status="canceled"),
            replace(TOLD, status="canceled"),
        ),
        (*GOOD, CancelAsked(at=3.9, job="a")),
        # … or was not reached: by nobody's answer, or because Redis was down.
        (*GOOD, CancelAsked(at=-9, job="a", accepted=False)),
        (*GOOD, CancelAsked(at=-9, job="a"), replace(RESTARTED, at=1, until=2)),
        # Redis failed over while the job ran, or just before, and what it knew of it is lost.
        (*without(SUCCEEDED, TOLD), LOSING, Shown(at=6, job="a", status="absent")),
        (*GOOD, LOSING, replace(TOLD, at=8, body="others"), replace(ENDED_IT, number=1)),
        (*without(COUNTED), LOSING, replace(COUNTED, totals={})),
        (*GOOD, LOSING, LeftOver(what="records", found=0, expected=1, of_records=True)),
        # Its key was used again after that, for a job of its own.
        (*GOOD, LOSING, replace(ACCEPTED, at=90, job="b"), *OTHER),
        # An outage of the store is charged to no job, a drained node's job goes back.
        (*without(FIRST, SECOND), *uncharged("store_unavailable"), replace(RESTARTED, at=2, until=2, harms="store")),
        (*without(FIRST, SECOND), *uncharged("drained"), replace(KILLED, at=2, until=2, harms="drain")),
        (*GOOD, LeftOver(what="leases", found=0, expected=0)),
        GOOD_BATCH,
        # Its receiver failed, or wants no more of it or of its jobs, for which it is one endpoint.
        (*GOOD_BATCH, replace(TOLD_BATCH, answered=500)),
        (BATCH, *OF_BATCH, COMPLETED, replace(TOLD_BATCH, answered=410)),
        (BATCH, *(sight for sight in OF_BATCH if sight != TOLD), COMPLETED, replace(TOLD, answered=410)),
    ],
)
def test_a_history_that_keeps_every_promise_passes(history: tuple[Sight, ...]) -> None:
    assert check(history).broken == ()


@pytest.mark.parametrize(
    ("history", "complaint"),
    [
        ((*without(QUEUED, PROCESSING, SUCCEEDED),), "a was accepted and is gone"),
        ((*GOOD, Shown(job="a", status="absent")), "a was accepted and is gone"),
        ((*without(SUCCEEDED),), "a was accepted and never ended"),
        ((*GOOD, FAILED), "a ended as failed and as succeeded"),
        ((*GOOD, TOLD_FAILED), "a ended as failed and as succeeded"),
        ((*GOOD, PROCESSING, SUCCEEDED), "a was processing after its end"),
        ((*GOOD, *followed(SUCCEEDED, PROCESSING)), "a was processing after its end"),
        ((*GOOD, *followed(PROCESSING, QUEUED)[::-1]), "a went back from version 1 to 0"),
        ((*GOOD, *followed(PROCESSING), *followed(PROCESSING)), "version 0 of a was sent twice"),
        ((*GOOD, *followed(PROCESSING), replace(followed(PROCESSING)[0], stream=1)), "version 0 of a was sent twice"),
        ((*GOOD, *followed(SUCCEEDED), replace(followed(SUCCEEDED)[0], stream=1)), "version 0 of a was sent twice"),
        ((*GOOD, *waiting((3, 0), (3, 0))), "version 1 of a was sent twice"),
        ((*GOOD, replace(TOLD, webhook_id="msg_a_2")), "the end of a was told under several ids"),
        ((*GOOD, replace(TOLD, body="others")), "the end of a was told in different words"),
        ((*GOOD, BEGUN, replace(BEGUN, webhook_id="msg_a_2_started")), "the start of a was told under several ids"),
        ((*without(TOLD), BEGUN), "the end of a was never told"),
        ((*GOOD, replace(STORED, manifest="second")), "a had several manifests"),
        ((*without(STORED),), "a succeeded without a manifest"),
        ((*without(STORED), Stored(at=6, job="a")), "a succeeded without a manifest"),
        ((*without(SECOND, ENDED_IT),), "attempt 2, which the ledger does not know"),
        # The node that was lost went on, and the ledger let it end the job.
        ((*GOOD, replace(ENDED_IT, number=1, worker="node-1")), "node-1 ended a in attempt 1, which it no longer held"),
        ((*GOOD, replace(ENDED_IT, worker="node-1")), "node-1 ended a in attempt 2, which it no longer held"),
        # Attempts that broke off although nothing was broken, or elsewhere, or not so.
        (without(LOST_NODE), "attempt 1 at a ended as lease_ran_out, which no fault explains"),
        ((*without(LOST_NODE), replace(LOST_NODE, node="node-2")), "attempt 1 at a ended as lease_ran_out, which no"),
        ((*GOOD, replace(FIRST, outcome="store_unavailable")), "attempt 1 at a ended as store_unavailable, which no"),
        ((*GOOD, replace(FIRST, outcome="drained")), "attempt 1 at a ended as drained, which no fault explains"),
        # The node was lost, and its job was put back long after its lease had run out.
        ((*without(FIRST), replace(FIRST, ended=10)), "a was put back 8.0 s after its node was lost"),
        # Redis had been away for longer than a clock's step, and its respite was over.
        (
            (*without(FIRST, LOST_NODE), replace(FIRST, ended=29), replace(RESTARTED, at=0, until=7)),
            "a was put back 7.0 s after its node was lost",
        ),
        # It had been away twice, for shorter, and was there long enough in between.
        (
            (
                *without(FIRST, LOST_NODE),
                replace(FIRST, ended=14),
                *(replace(RESTARTED, at=at, until=at + 3) for at in (0, 4.5)),
            ),
            "a was put back 6.5 s after its node was lost",
        ),
        # Cancellations that were accepted and forgotten.
        ((*GOOD, CancelAsked(at=-1, job="a")), "a succeeded 5.0 s after its cancellation was accepted"),
        ((*GOOD, CancelAsked(at=-9, job="a"), replace(RESTARTED, at=-5, until=-4)), "a succeeded 13.0 s after its"),
        # An outage, or a drain, was charged to a job; a lost lease was not.
        (
            (
                *without(FIRST),
                replace(FIRST, outcome="store_unavailable"),
                replace(RESTARTED, at=2, until=2, harms="store"),
            ),
            "attempt 1 at a, which ended as store_unavailable, was charged",
        ),
        ((*without(FIRST), replace(FIRST, number=2)), "attempt 2 at a, which ended as lease_ran_out, was not charged"),
        # The store's outage failed a job.
        (
            (
                *without(*ONE_END),
                replace(FAILED, error="store_unavailable"),
                TOLD_FAILED,
                replace(BROKEN_OFF, outcome="store_unavailable"),
                replace(RESTARTED, harms="store"),
            ),
            r"a ended as failed \(store_unavailable\), which no fault explains",
        ),
        (
            (*without(STORED), replace(STORED, attempt=4, folders=("attempt-4-7-0123abcd",))),
            "attempt 4, which the ledger does",
        ),
        (
            (*without(STORED), replace(STORED, folders=("attempt-1-1-0123abcd",))),
            "attempt 2, with objects of attempt-1-1-0123abcd",
        ),
        (
            (*without(STORED), replace(STORED, folders=("attempt-1-1-0123abcd", "attempt-2-3-0123abcd"))),
            "with objects of attempt-1-1-0123abcd, at",
        ),
        (
            (*without(STORED), replace(STORED, folders=("attempt-2-3-0123abcd", "attempt-2-5-0123abcd"))),
            "with objects of attempt-2-3-0123abcd, at",
        ),
        ((*without(STORED), replace(STORED, whole=False)), "a has a manifest whose objects are not what it says"),
        ((*without(STORED), replace(STORED, masks="others")), "a has other masks"),
        ((*without(TOLD),), "the end of a was never told"),
        ((*without(TOLD), replace(TOLD, answered=500)), "the end of a was never told"),
        ((*GOOD, replace(TOLD, signed_for="")), "a signature that does not hold"),
        ((*GOOD, replace(TOLD, signed_for="bee")), "a signature that does not hold"),
        ((*FAILING, BROKEN_OFF), "a ended as failed .*, which no fault explains"),
        # No fault explains it that was on another node, found nothing to break, harms no lease, or came too late …
        *(
            (
                (*FAILING, BROKEN_OFF, fault),
                "a ended as failed .*, which no fault explains",
            )
            for fault in (
                replace(KILLED, node="node-2"),
                replace(KILLED, acted=False),
                replace(RESTARTED, acted=False),
                replace(KILLED, harms="nothing"),
                replace(KILLED, at=9, until=9),
            )
        ),
        # … or whose aftermath was over, on its own node and elsewhere.
        *(
            (
                (*FAILING, replace(BROKEN_OFF, started=40, ended=60), fault),
                "a ended as failed .*, which no fault explains",
            )
            for fault in (replace(KILLED, until=12), RESTARTED)
        ),
        # One of three attempts is not explained.
        (
            (
                *FAILING,
                replace(BROKEN_OFF, number=2, worker="node-2", outcome="lease_ran_out"),
                BROKEN_OFF,
                KILLED,
            ),
            "a ended as failed .*, which no fault explains",
        ),
        ((*without(SUCCEEDED, TOLD), replace(FAILED, status="expired")), "a ended as expired .*, which no fault"),
        ((*without(SUCCEEDED, TOLD), replace(SUCCEEDED, status="canceled")), "a was canceled, and nobody asked"),
        ((*without(ACCEPTED), replace(ACCEPTED, kind=POISONED)), "a is poisoned and ended as succeeded"),
        (
            (
                *without(ACCEPTED, *ONE_END),
                replace(ACCEPTED, kind=POISONED),
                replace(FAILED, error="store_unavailable"),
                TOLD_FAILED,
                replace(BROKEN_OFF, outcome="store_unavailable"),
                KILLED,
            ),
            r"a ended as failed \(store_unavailable\), which no fault explains",
        ),
        ((*GOOD, replace(ACCEPTED, job="b")), "the key k stands for 2: a, b"),
        ((*GOOD, LeftOver(what="leases", found=1, expected=0)), "leases: 1 are left"),
        # A failover explains nothing of a job that had ended long before, or came long after.
        *(
            (
                (*without(SUCCEEDED, COUNTED), replace(LOSING, **when), Shown(at=6, job="a", status="absent")),
                "a was accepted and is gone",
            )
            for when in ({"at": 50, "until": 51, "loses_since": 50}, {"at": -51, "until": -50, "loses_since": -51})
        ),
        ((*GOOD, LOSING, LeftOver(what="records", found=2, expected=1, of_records=True)), "records: 2 are left"),
        ((*GOOD, LOSING, LeftOver(what="leases", found=1, expected=0)), "leases: 1 are left"),
        # Even then a job must not be stuck, nor succeed with half a result.
        ((*without(SUCCEEDED, COUNTED), LOSING), "a was accepted and never ended"),
        (
            (*without(STORED), LOSING, replace(STORED, whole=False)),
            "a has a manifest whose objects are not what it says",
        ),
        ((*GOOD, Refused(key="k", status=500, code="internal_error")), "answered with 500"),
        ((*without(COUNTED), replace(COUNTED, totals={"created": 2, "succeeded": 2})), "2 jobs were created and 1"),
        ((*without(COUNTED), replace(COUNTED, totals={"created": 1, "succeeded": 2})), "2 ends were counted for 1"),
        ((replace(BATCH, jobs=("a",)), *OF_BATCH, COMPLETED, TOLD_BATCH), "batch of 2 images has 1 jobs"),
        ((BATCH, *OF_BATCH, TOLD_BATCH), "batch was accepted and is gone"),
        ((BATCH, *OF_BATCH, replace(COMPLETED, status="absent"), TOLD_BATCH), "batch was accepted and is gone"),
        ((BATCH, *OF_BATCH, replace(COMPLETED, jobs=("a", "c")), TOLD_BATCH), "batch has other jobs than it was"),
        ((BATCH, *OF_BATCH, replace(COMPLETED, status="processing"), TOLD_BATCH), "batch is processing, and all its"),
        ((BATCH, *OF_BATCH, replace(COMPLETED, counts={"succeeded": 1}), TOLD_BATCH), "batch was said to have .*1"),
        ((*GOOD_BATCH, replace(TOLD_BATCH, counts={"succeeded": 1})), "batch was said to have .*1"),
        ((*GOOD_BATCH, replace(TOLD_BATCH, webhook_id="msg_batch_2")), "the end of batch was told under several ids"),
        ((BATCH, *OF_BATCH, COMPLETED), "the end of batch was never told"),
        ((BATCH, *OF_BATCH, COMPLETED, replace(TOLD_BATCH, answered=500)), "the end of batch was never told"),
        ((*GOOD_BATCH, replace(BATCH, batch="batch_2")), "the key all stands for 2: batch, batch_2"),
        ((*(sight for sight in GOOD_BATCH if sight != replace(SUCCEEDED, job="b")),), "b was accepted and is gone"),
    ],
)
def test_a_broken_promise_is_found(history: tuple[Sight, ...], complaint: str) -> None:
    broken = check(history).broken

    assert [words for words in broken if re.search(complaint, words)]


def test_a_history_reads_back_as_it_was_written(tmp_path: Path) -> None:
    with History(tmp_path / "history.jsonl") as history:
        for sight in (*GOOD_BATCH, KILLED, BROKEN_OFF):
            history.note(sight)

    assert history.read() == (*GOOD_BATCH, KILLED, BROKEN_OFF)
