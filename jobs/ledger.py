"""The truth about every job, in Redis: one atomic script for each transition, with Redis' own clock.

Celery's messages only say "look at this job"; they may be lost or come twice.  What a worker may do is
decided here.  A claim gives a lease, which the worker beats, and a fencing token: whoever holds an older
token can change nothing.

Keys (all begin with ``mf:``, one Redis, not a cluster; times are milliseconds since the epoch):

    job:{id}              hash    the record; expires ``retention_s`` after the job's end
    jobs:{tenant}         zset    job id → created; the tenant's list; forgets expired records by itself
    inflight:{tenant}     set     ids of jobs that have not ended
    idempotency:{tenant}:{key}  hash    job, digest of the body; expires after ``idempotency_ttl_s``
    queued:{queue}        zset    job id → created; who waits, and at which place
    leases                zset    job id → when the lease runs out; who is running
    deadlines             zset    job id → when it must have started
    outbox                zset    job id → when it is to be published (again); left by the claim
    deliveries            zset    delivery id → when it is to be sent
    delivery:{id}         hash    job, event, url, tries, outcome; expires as the record does
    workers               zset    node → last seen
    worker:{node}         hash    what the node serves; expires when it is not seen
    totals                hash    counts since the beginning: created, succeeded, failed, canceled, expired
"""

from __future__ import annotations

import importlib.resources
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from jobs.errors import QueueUnavailable
from jobs.record import JobRecord, ProgressView, ResultSummary
from jobs.settings import SharedSettings
from jobs.spec import EventName, Webhook
from jobs.status import Status

#: The API publishes at once; the courier looks after this long whether it came to that.
PUBLISH_GRACE_MS = 5_000
#: A published job that nobody claims is published again after this long, then twice as long, and so on.
REPUBLISH_MS = 300_000
#: A courier that takes a delivery has this long to report on it.
DELIVERY_LEASE_MS = 60_000
#: A worker that was not seen for this long is no longer counted.
WORKER_TTL_S = 30


class Created(StrEnum):
    """What CREATE came to."""

    CREATED = "created"
    KNOWN = "known"
    KEY_REUSED = "key_reused"
    OVER_QUOTA = "over_quota"


class Reply(StrEnum):
    """What the ledger tells a worker."""

    OK = "ok"
    CANCELED = "canceled"
    FENCED = "fenced"


class Cancel(StrEnum):
    """What CANCEL came to."""

    CANCELED = "canceled"
    REQUESTED = "requested"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be recorded.  ``idempotency_key`` and ``body_digest`` are empty without the header."""

    tenant: str
    queue: str
    spec_json: str
    start_deadline_s: int
    webhook: Webhook | None = None
    idempotency_key: str = ""
    body_digest: str = ""


@dataclass(frozen=True, slots=True)
class Creation:
    """CREATE's answer.  ``job_id`` is the new job, or the one that the idempotency key stands for."""

    outcome: Created
    job_id: str


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many jobs a REAP moved."""

    requeued: int
    failed: int
    canceled: int
    expired: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that is due.  ``tries`` counts this one."""

    id: str
    job_id: str
    event: EventName
    url: str
    tries: int


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that announced itself lately."""

    node: str
    model: str
    device: str
    pid: int
    jobs: int


def new_job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


def connect(settings: SharedSettings) -> redis.Redis:
    """Make a client that gives up within seconds instead of hanging; it connects on first use."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=2,
        health_check_interval=30,
        # One immediate retry repairs a pooled connection that the server has closed; CREATE is safe to run twice.
        retry=Retry(NoBackoff(), 1),
    )


class Ledger:
    """The jobs' records and every transition between their states."""

    def __init__(self, client: redis.Redis, retention_s: int) -> None:
        self._redis = client
        self._retention_ms = retention_s * 1000
        scripts = importlib.resources.files("jobs") / "lua"
        prelude = (scripts / "prelude.lua").read_text()

        def script(name: str) -> Script:
            return client.register_script(prelude + (scripts / f"{name}.lua").read_text())

        self._create = script("create")
        self._claim = script("claim")
        self._beat = script("beat")
        self._finish = script("finish")
        self._release = script("release")
        self._cancel = script("cancel")
        self._reap = script("reap")
        self._due_publishes = script("due_publishes")
        self._due_deliveries = script("due_deliveries")

    # The caller's side.

    def create(self, job: NewJob, *, max_in_flight: int, idempotency_ttl_s: int) -> Creation:
        """Record a job in state ``queued`` and owe its publication.

        Raises QueueUnavailable when Redis does not answer or is full; then nothing was recorded, or the
        same idempotency key finds what was.
        """
        events = ",".join(job.webhook.events) if job.webhook else ""
        with _redis_errors():
            outcome, job_id = self._create(
                args=[
                    new_job_id(),
                    job.tenant,
                    job.queue,
                    job.spec_json,
                    job.start_deadline_s * 1000,
                    job.webhook.url if job.webhook else "",
                    events,
                    job.idempotency_key,
                    job.body_digest,
                    idempotency_ttl_s * 1000,
                    max_in_flight,
                    PUBLISH_GRACE_MS,
                ]
            )
        return Creation(Created(outcome), job_id)

    def read(self, job_id: str) -> JobRecord | None:
        """Give the record, or None when there is none (any more)."""
        with _redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"mf:job:{job_id}"))
        return JobRecord.from_fields(fields) if fields else None

    def status(self, job_id: str) -> Status | None:
        """Give the state alone; for those who wait on it."""
        with _redis_errors():
            status = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "status"))
        return Status(status) if status else None

    def queue_position(self, record: JobRecord) -> int | None:
        """Give how many jobs are before this one in its queue; None when it is not queued."""
        with _redis_errors():
            return cast("int | None", self._redis.zrank(f"mf:queued:{record.queue}", record.id))

    def jobs_of(self, tenant: str, *, before: tuple[int, str] | None, limit: int) -> list[JobRecord]:
        """Give the tenant's records, newest first, that are older than the place ``before`` (created_ms, id)."""
        key = f"mf:jobs:{tenant}"
        newest = "+inf" if before is None else str(before[0])
        offset = 0
        records: list[JobRecord] = []
        with _redis_errors():
            while len(records) < limit:
                ids = cast(
                    "list[str]",
                    self._redis.zrange(key, newest, "-inf", byscore=True, desc=True, offset=offset, num=limit),
                )
                if not ids:
                    break
                offset += len(ids)
                pipeline = self._redis.pipeline(transaction=False)
                for job_id in ids:
                    pipeline.hgetall(f"mf:job:{job_id}")
                found = (JobRecord.from_fields(fields) for fields in pipeline.execute() if fields)
                records += (record for record in found if before is None or (record.created_ms, record.id) < before)
        return records[:limit]

    def cancel(self, job_id: str, tenant: str) -> Cancel:
        """End a queued job at once, or ask the worker of a running one to stop."""
        with _redis_errors():
            return Cancel(self._cancel(args=[job_id, tenant, self._retention_ms]))

    # The worker's side.

    def claim(self, job_id: str, worker: str, *, lease_s: float, max_attempts: int) -> JobRecord | None:
        """Take a job for as long as its lease is beaten; None when it is to be dropped."""
        with _redis_errors():
            verdict, *fields = self._claim(args=[job_id, worker, int(lease_s * 1000), max_attempts, self._retention_ms])
        if verdict != "claimed":
            return None
        return JobRecord.from_fields(dict(zip(fields[::2], fields[1::2], strict=True)))

    def beat(self, record: JobRecord, progress: ProgressView, *, lease_s: float) -> Reply:
        """Keep the lease and show progress; learn whether to stop."""
        with _redis_errors():
            return Reply(
                self._beat(
                    args=[
                        record.id,
                        record.fence,
                        int(lease_s * 1000),
                        progress.stage,
                        progress.done,
                        progress.total,
                        progress.masks,
                    ]
                )
            )

    def succeed(self, record: JobRecord, result: ResultSummary) -> Reply:
        """End a job well; FENCED when it was no longer this worker's to end."""
        return self._end(record, Status.SUCCEEDED, result=result.model_dump_json())

    def fail(self, record: JobRecord, code: str, detail: str) -> Reply:
        """End a job as failed."""
        return self._end(record, Status.FAILED, code=code, detail=detail)

    def finish_canceled(self, record: JobRecord) -> Reply:
        """End a running job that its caller canceled."""
        return self._end(record, Status.CANCELED)

    def _end(self, record: JobRecord, status: Status, *, code: str = "", detail: str = "", result: str = "") -> Reply:
        with _redis_errors():
            return Reply(self._finish(args=[record.id, record.fence, status, code, detail, result, self._retention_ms]))

    def release(self, record: JobRecord, *, delay_s: float, charged: bool) -> Reply:
        """Hand a job back, to be tried again after ``delay_s``; ``charged`` counts the attempt."""
        with _redis_errors():
            return Reply(self._release(args=[record.id, record.fence, int(delay_s * 1000), int(charged)]))

    def announce(self, worker: WorkerSeen) -> None:
        """Say that a worker is there and ready; to be repeated well within WORKER_TTL_S."""
        with _redis_errors():
            seconds, _ = self._redis.time()
            pipeline = self._redis.pipeline()
            pipeline.zadd("mf:workers", {worker.node: seconds})
            pipeline.hset(
                f"mf:worker:{worker.node}",
                mapping={"model": worker.model, "device": worker.device, "pid": worker.pid, "jobs": worker.jobs},
            )
            pipeline.expire(f"mf:worker:{worker.node}", WORKER_TTL_S)
            pipeline.zremrangebyscore("mf:workers", "-inf", seconds - WORKER_TTL_S)
            pipeline.execute()

    def withdraw(self, node: str) -> None:
        """Say that a worker is gone."""
        with _redis_errors():
            self._redis.zrem("mf:workers", node)
            self._redis.delete(f"mf:worker:{node}")

    def workers(self) -> list[WorkerSeen]:
        """Give the workers that announced themselves lately, by name."""
        with _redis_errors():
            nodes = sorted(cast("list[str]", self._redis.zrange("mf:workers", 0, -1)))
            pipeline = self._redis.pipeline(transaction=False)
            for node in nodes:
                pipeline.hgetall(f"mf:worker:{node}")
            seen = zip(nodes, pipeline.execute(), strict=True)
            return [
                WorkerSeen(node, fields["model"], fields["device"], int(fields["pid"]), int(fields["jobs"]))
                for node, fields in seen
                if fields
            ]

    # The courier's side.

    def published(self, job_id: str) -> None:
        """Note that a job's message is in the queue; it is due again only if nobody claims it."""
        with _redis_errors():
            seconds, _ = self._redis.time()
            self._redis.zadd("mf:outbox", {job_id: seconds * 1000 + REPUBLISH_MS}, xx=True)

    def due_publishes(self, limit: int = 100) -> list[tuple[str, str]]:
        """Take the (job id, queue) pairs whose message is missing."""
        with _redis_errors():
            flat = self._due_publishes(args=[limit, REPUBLISH_MS])
        return list(zip(flat[::2], flat[1::2], strict=True))

    def reap(self, *, max_attempts: int, limit: int = 100) -> Reaped:
        """Take back jobs whose lease ran out, and expire those that waited too long."""
        with _redis_errors():
            return Reaped(*self._reap(args=[limit, max_attempts, self._retention_ms]))

    def due_deliveries(self, limit: int = 20) -> list[Delivery]:
        """Take the webhooks that are due; each must be reported on within DELIVERY_LEASE_MS."""
        with _redis_errors():
            flat = self._due_deliveries(args=[limit, DELIVERY_LEASE_MS])
        return [
            Delivery(delivery, job_id, EventName(event), url, int(tries))
            for delivery, job_id, event, url, tries in zip(*[iter(flat)] * 5, strict=True)
        ]

    def delivery_ended(self, delivery: Delivery, outcome: str) -> None:
        """Note that a webhook arrived, or was given up, and need not be sent again."""
        with _redis_errors():
            pipeline = self._redis.pipeline()
            pipeline.zrem("mf:deliveries", delivery.id)
            pipeline.hset(f"mf:delivery:{delivery.id}", "outcome", outcome)
            pipeline.execute()

    def delivery_postponed(self, delivery: Delivery, delay_s: float) -> None:
        """Note that a webhook did not arrive and is to be sent again after a while."""
        with _redis_errors():
            seconds, _ = self._redis.time()
            self._redis.zadd("mf:deliveries", {delivery.id: (seconds + delay_s) * 1000}, xx=True)

    # For those who watch.

    def ping(self) -> None:
        """Raise QueueUnavailable unless Redis answers."""
        with _redis_errors():
            self._redis.ping()

    def totals(self) -> dict[str, int]:
        """Count jobs since the beginning, by how they ended."""
        with _redis_errors():
            return {
                name: int(count) for name, count in cast("dict[str, str]", self._redis.hgetall("mf:totals")).items()
            }

    def queued(self, queues: tuple[str, ...]) -> dict[str, int]:
        """Count the jobs that wait, by queue."""
        with _redis_errors():
            return {queue: self._redis.zcard(f"mf:queued:{queue}") for queue in queues}

    def processing(self) -> int:
        """Count the jobs that are running."""
        with _redis_errors():
            return self._redis.zcard("mf:leases")

    def publishes_due(self) -> int:
        """Count the jobs whose message is missing; the courier is to publish them."""
        with _redis_errors():
            seconds, _ = self._redis.time()
            return self._redis.zcount("mf:outbox", "-inf", seconds * 1000)

    def deliveries_waiting(self) -> int:
        """Count the webhooks that have still to be sent."""
        with _redis_errors():
            return self._redis.zcard("mf:deliveries")


@contextmanager
def _redis_errors() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError) as error:
        raise QueueUnavailable from error
    except redis.exceptions.OutOfMemoryError as error:
        raise QueueUnavailable("The queue is full. Nothing was recorded; send the request again later.") from error
