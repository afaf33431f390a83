"""A Redis that lost its last writes: two workers hold one job under one fence, and only one of them may change it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs, Reply
from maskfleet.jobs.schema.record import JobRecord, Metrics, ProgressView, ResultSummary
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Stage, Status
from maskfleet.jobs.storage import attempt_prefix
from maskfleet.stack.servers import start_redis
from tests.conftest import ports_in_turn

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
QUEUE = "sam.m.normal"
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())
WRITING = ProgressView(stage=Stage.WRITING)


@pytest.fixture
def two_claims(tmp_path: Path) -> Iterator[tuple[Ledger, redis.Redis, JobRecord, JobRecord]]:
    """A ledger whose Redis came back without the first of two claims: its append-only file ends before it."""
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log")
    client = connect(SharedSettings(redis_url=server.url))
    ledger = Ledger(client, retention_s=3600)
    ledger.create(NewJobs("ant", QUEUE, (SPEC,), 600), max_in_flight=9, idempotency_ttl_s=60)
    assert client.execute_command("WAITAOF", 1, 0, 10_000) == [1, 0]
    shutil.copytree(tmp_path / "data", tmp_path / "earlier")
    first = ledger.claim_next((QUEUE,), "node-1", lease_s=600, max_attempts=3).record
    server.stop()
    restored = start_redis(tmp_path / "earlier", log=tmp_path / "restored.log", port=server.port)
    second = ledger.claim_next((QUEUE,), "node-2", lease_s=600, max_attempts=3).record
    assert first is not None
    assert second is not None
    yield ledger, client, first, second
    client.close()
    restored.stop()


def test_of_two_workers_with_one_fence_the_ledger_knows_only_one(
    two_claims: tuple[Ledger, redis.Redis, JobRecord, JobRecord],
) -> None:
    ledger, client, first, second = two_claims
    assert (first.id, first.attempt, first.fence) == (second.id, second.attempt, second.fence)

    beats = [ledger.beat(record, WRITING, lease_s=600) for record in (first, second)]
    late = [ledger.succeed(first, RESULT), ledger.fail(first, "x", "y"), ledger.finish_canceled(first)]
    late.append(ledger.release(first, delay_s=0, charged=True))
    held = ledger.status(second.id)
    end = ledger.succeed(second, RESULT)
    after = ledger.succeed(first, RESULT)

    assert beats == [Reply.FENCED, Reply.OK]
    assert late == [Reply.FENCED] * 4
    assert (held, end, after) == (Status.PROCESSING, Reply.OK, Reply.FENCED)
    assert JobCounts(client).totals()["fenced"] == 6


def test_two_workers_with_one_fence_write_to_folders_of_their_own(
    two_claims: tuple[Ledger, redis.Redis, JobRecord, JobRecord],
) -> None:
    _, _, first, second = two_claims

    folders = [
        attempt_prefix(record.tenant, record.id, record.attempt, record.fence, record.token)
        for record in (first, second)
    ]

    assert folders[0] != folders[1]
