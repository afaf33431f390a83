"""A lease on a real ledger: which attempt must stop, and what ends one that does not."""

from __future__ import annotations

import threading

import pytest

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.record import JobRecord, ProgressView
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.status import Stage, Status
from maskfleet.worker.lease import Canceled, Drained, Lease, LeaseRanOut
from tests import taking
from tests.waiting import wait_until

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"run_timeout_s":%d}'


def claimed(ledger: Ledger, *, run_timeout_s: int = 60, lease_s: float = 30) -> JobRecord:
    job = NewJobs(tenant="ant", queue="sam.m.normal", specs_json=(SPEC % run_timeout_s,), start_deadline_s=60)
    job_id = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id
    record = taking.claim(ledger, job_id, "node-1", lease_s=lease_s, max_attempts=3)
    assert record is not None
    return record


def progress_of(ledger: Ledger, record: JobRecord) -> ProgressView:
    job = ledger.read(record.id)
    assert job is not None
    assert job.progress is not None
    return job.progress


@pytest.fixture
def settings() -> WorkerSettings:
    return WorkerSettings(node="node-1", beat_s=0.02, stop_grace_s=0.1)


def test_progress_reaches_the_ledger(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger)

    with Lease(ledger, record, settings) as lease:
        lease.stage(Stage.DECODING)
        lease.batch(3, 16, 40)
        seen = wait_until(
            lambda: (now := ledger.read(record.id)) and now.progress and now.progress.done and now.progress
        )

    assert (seen.stage, seen.done, seen.total, seen.masks) == (Stage.DECODING, 3, 16, 40)


def test_a_canceled_attempt_is_told_at_its_next_batch(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger)

    with Lease(ledger, record, settings.model_copy(update={"stop_grace_s": 30})) as lease:
        ledger.cancel(record.id, "ant")
        with pytest.raises(Canceled):
            wait_until(lambda: lease.batch(1, 2, 0))


def test_an_attempt_of_a_node_that_drains_is_told_after_the_grace(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger)

    with Lease(ledger, record, settings.model_copy(update={"stop_grace_s": 30})) as lease:
        ledger.drain("node-1", grace_s=0)
        with pytest.raises(Drained):
            wait_until(lambda: lease.check())


def test_an_attempt_that_cannot_beat_stops_before_another_may_begin(settings: WorkerSettings, ledger: Ledger) -> None:
    record = claimed(ledger)
    away = WorkerSettings(redis_url="redis://127.0.0.1:1/0")
    with (
        Lease(
            Ledger(connect(away), 60), record, settings.model_copy(update={"lease_s": 0.2, "stop_grace_s": 30})
        ) as lease,
        pytest.raises(LeaseRanOut),
    ):
        wait_until(lambda: lease.check())


def hang(ledger: Ledger, record: JobRecord, settings: WorkerSettings) -> bool:
    """Hold a lease during a call that never checks it; return whether its process would have been killed."""
    ended = threading.Event()
    with Lease(ledger, record, settings, end_process=ended.set):
        return ended.wait(10)


def test_a_hung_attempt_whose_time_is_over_is_ended_with_its_process(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger, run_timeout_s=1)

    assert hang(ledger, record, settings)

    job = ledger.read(record.id)
    assert job is not None
    assert (job.status, job.error and job.error.code) == (Status.FAILED, "timeout")


def test_a_hung_attempt_that_was_canceled_is_ended_with_its_process(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger)
    ledger.cancel(record.id, "ant")

    assert hang(ledger, record, settings)

    assert ledger.status(record.id) is Status.CANCELED


def test_a_hung_attempt_of_a_node_that_drains_is_handed_back_uncharged(
    ledger: Ledger, settings: WorkerSettings
) -> None:
    record = claimed(ledger)
    ledger.drain("node-1", grace_s=0)

    assert hang(ledger, record, settings)

    job = ledger.read(record.id)
    assert job is not None
    assert (job.status, job.attempt) == (Status.QUEUED, 0)


def test_a_hung_attempt_that_lost_its_lease_is_ended_and_changes_nothing(
    ledger: Ledger, settings: WorkerSettings
) -> None:
    record = claimed(ledger)
    ledger.release(record, delay_s=0, charged=True)

    assert hang(ledger, record, settings)

    assert ledger.status(record.id) is Status.QUEUED


def test_an_attempt_that_is_well_is_let_be(ledger: Ledger, settings: WorkerSettings) -> None:
    record = claimed(ledger)
    ended = threading.Event()

    with Lease(ledger, record, settings, end_process=ended.set) as lease:
        for done in range(1, 6):
            lease.batch(done, 5, 0)
            wait_until(lambda done=done: progress_of(ledger, record).done == done)

    assert not ended.is_set()
