"""Batches: many jobs that are recorded together, counted together, and told of together when the last has ended.

The counts move in the very scripts that move the jobs: see jobs/lua/batches.lua.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import redis

from jobs.batch import BatchRecord
from jobs.connection import load_script, redis_errors
from jobs.ledger import new_job_id
from jobs.outbox import PUBLISH_GRACE_MS
from jobs.spec import Webhook
from jobs.transitions import BacklogLimit, Created


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be recorded.

    specs_json: one for each job.  webhook: what is told of each job.  completed_url: where the batch's end is told,
    empty for nowhere.  ``idempotency_key`` and ``body_digest`` are empty without the header.
    """

    tenant: str
    queue: str
    specs_json: Sequence[str]
    start_deadline_s: int
    webhook: Webhook | None = None
    completed_url: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    body_digest: str = ""


@dataclass(frozen=True, slots=True)
class BatchCreation:
    """CREATE_BATCH's answer.

    batch_id: the new batch, or what the idempotency key stands for; empty when none was recorded.
    job_ids: of a new batch.  wait_s: with BACKLOG_FULL, how long its last job would wait.
    """

    outcome: Created
    batch_id: str
    job_ids: tuple[str, ...] = ()
    wait_s: float = 0.0


class Batches:
    """The batches' records."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._create = load_script(client, "create_batch")

    def create(
        self, batch: NewBatch, *, max_in_flight: int, idempotency_ttl_s: int, backlog: BacklogLimit | None = None
    ) -> BatchCreation:
        """Record a batch and all its jobs in one step, each ``queued`` and its publication owed; or nothing of it.

        Raises QueueUnavailable as ``Ledger.create`` does, and with the same meaning.
        """
        job_ids = tuple(new_job_id() for _ in batch.specs_json)
        new = {
            "tenant": batch.tenant,
            "queue": batch.queue,
            "start_deadline_ms": batch.start_deadline_s * 1000,
            "webhook_url": batch.webhook.url if batch.webhook else "",
            "webhook_events": ",".join(batch.webhook.events) if batch.webhook else "",
            "completed_url": batch.completed_url,
            "metadata": json.dumps(dict(batch.metadata)),
            "idempotency_key": batch.idempotency_key,
            "body_digest": batch.body_digest,
            "idempotency_ttl_ms": idempotency_ttl_s * 1000,
            "publish_grace_ms": PUBLISH_GRACE_MS,
            "max_in_flight": max_in_flight,
            "max_backlog_ms": int(backlog.max_wait_s * 1000) if backlog else 0,
            "workers": backlog.workers if backlog else 0,
            "more_urgent": list(backlog.more_urgent) if backlog else [],
        }
        jobs = [part for pair in zip(job_ids, batch.specs_json, strict=True) for part in pair]
        with redis_errors():
            outcome, found = self._create(args=[f"batch_{uuid.uuid4().hex}", json.dumps(new), *jobs])
        match Created(outcome):
            case Created.OVER_QUOTA as refused:
                return BatchCreation(refused, "")
            case Created.BACKLOG_FULL as refused:
                return BatchCreation(refused, "", wait_s=int(found) / 1000)
            case Created.CREATED as recorded:
                return BatchCreation(recorded, found, job_ids)
            case known:
                return BatchCreation(known, found)

    def read(self, batch_id: str) -> BatchRecord | None:
        """Give the record, or None when there is none (any more)."""
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"mf:batch:{batch_id}"))
        return BatchRecord.from_fields(batch_id, fields) if fields else None

    def job_ids(self, batch_id: str) -> tuple[str, ...]:
        """Give the ids of a batch's jobs, in the order of its images."""
        with redis_errors():
            return tuple(cast("list[str]", self._redis.lrange(f"mf:batch_jobs:{batch_id}", 0, -1)))
