"""The truth about every job, in Redis: one atomic script for each transition, with Redis' own clock.

Celery's messages only say "look at this job"; they may be lost or come twice.  What a worker may do is
decided here.  A claim gives a lease, which the worker beats, and a fencing token: whoever holds an older
token can change nothing.

Keys (all begin with ``mf:``, one Redis, not a cluster; times are milliseconds since the epoch; docs/ledger.md has the
fields of those that have some):

    job:{id}              hash    the record; expires ``retention_s`` after the job's end, and not before the
                                  webhook of that end was tried once, or a week has passed
    jobs:{tenant}         zset    job id → created; the tenant's list; forgets expired records by itself
    inflight:{tenant}     set     ids of jobs that have not ended
    idempotency:{tenant}:{key}  hash    job (or batch), digest of the body; expires after ``idempotency_ttl_s``
    queued:{queue}        zset    job id → created; who waits, and at which place
    leases                zset    job id → when the lease runs out; who is running
    deadlines             zset    job id → when it must have started
    batch:{id}            hash    a batch: whose, when, how many of its jobs are in each state; expires ``retention_s``
                                  after the end of the last one, and not before its webhook was tried once, or a week
                                  has passed                                                  (batches.py)
    batch_jobs:{id}       list    ids of its jobs, in the order of its images; expires ``retention_s`` after that end
    attempts:{id}         list    each attempt as JSON: number, worker, times, outcome; expires as the record does
    draining:{node}       string  when the node hands its jobs back; expires a minute later
    pace                  hash    queue → a moving average of the time that one job takes, in ms
    totals                hash    counts since the beginning: created, each end, fenced, requeued, retried, and
                                  webhooks by how they ended
    outbox                zset    job id → when it is to be published (again); left by the claim  (outbox.py)
    deliveries            zset    delivery id → when it is to be sent; who waits              (deliveries.py)
    delivery:{id}         hash    a webhook: whose, what, where, state, its bytes; expires ``retention_s`` after
                                  its end, and a week after the week in which it is given up at the latest
    tries:{id}            list    the latest tries at it as JSON; expires as the delivery does
    deliveries:{tenant}   zset    delivery id → created; the tenant's log; forgets expired ones by itself
    told:{id}             list    ids of the deliveries that tell of the job or batch; expires two weeks after the last
    lanes, lanes:{tenant}  zset, zset  tenant, and host → when to look what is due; nothing due, no entry
    due:{tenant}:{host}   zset    delivery id → when it is due
    sending:{tenant}:{host}  zset  delivery id → until when a courier has it
    breaker:{tenant}:{host}  hash  failures in a row, until when the host is left alone; expires after a day
    disabled:{tenant}:{sha1}  string  of a URL: when it answered 410; expires after ``DISABLED_S`` (deliveries.py)
    workers               zset    node → last seen, in seconds                                (workers.py)
    swept                 string  there while no sweep is due; expires after ``sweep_s``      (sweeps.py)
    sweep                 string  the lock of the sweep that runs; expires when it is not kept (sweeps.py)
    schema                string  the version of all this                                     (version.py)
    upgrade               string  the lock of the upgrade that runs; expires when it is not kept (version.py)
    worker:{node}         hash    what the node serves; expires when it is not seen           (workers.py)
    keys, key:{id}        zset, hash  API keys                                                (api_keys.py)
    limits:{…}            string  how often a key or an address asked; expires              (api/limits.py)
"""

from __future__ import annotations

import json
import uuid
from typing import cast

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.ledger.outbox import PUBLISH_GRACE_MS
from maskfleet.jobs.ledger.outcomes import (
    BacklogLimit,
    Cancel,
    Created,
    Creation,
    Deleted,
    NewJobs,
    Reaped,
    Reply,
    Retried,
)
from maskfleet.jobs.ledger.version import SCHEMA, Schema
from maskfleet.jobs.schema.record import AttemptView, JobRecord, ProgressView, ResultSummary
from maskfleet.jobs.status import Status


def new_job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


class Ledger:
    """The jobs' records and every transition between their states."""

    def __init__(self, client: redis.Redis, retention_s: int) -> None:
        self._redis = client
        self._schema = Schema(client)
        self._retention_ms = retention_s * 1000
        self._create = load_script(client, "create")
        self._claim = load_script(client, "claim")
        self._beat = load_script(client, "beat")
        self._finish = load_script(client, "finish")
        self._release = load_script(client, "release")
        self._cancel = load_script(client, "cancel")
        self._retry = load_script(client, "retry")
        self._delete = load_script(client, "delete")
        self._reap = load_script(client, "reap")

    def check_version(self) -> None:
        """Raise LedgerVersion when what Redis holds is of another version; an empty Redis becomes one of this.

        Programs ask when they start.  Whoever starts while Redis is away is refused later, before the first job that
        it creates, claims or takes back.
        """
        self._schema.check()

    # The caller's side.

    def create(
        self, jobs: NewJobs, *, max_in_flight: int, idempotency_ttl_s: int, backlog: BacklogLimit | None = None
    ) -> Creation:
        """Record jobs in state ``queued``, and their batch if they are of one, and owe their publication; all or none.

        Raises QueueUnavailable when Redis does not answer or is full; then nothing was recorded, or the
        same idempotency key finds what was.
        """
        self.check_version()
        job_ids = tuple(new_job_id() for _ in jobs.specs_json)
        new: dict[str, object] = {
            "schema": SCHEMA,
            "tenant": jobs.tenant,
            "queue": jobs.queue,
            "start_deadline_ms": jobs.start_deadline_s * 1000,
            "webhook_url": jobs.webhook.url if jobs.webhook else "",
            "webhook_events": ",".join(jobs.webhook.events) if jobs.webhook else "",
            "publish_grace_ms": PUBLISH_GRACE_MS,
            "idempotency_key": jobs.idempotency_key,
            "body_digest": jobs.body_digest,
            "idempotency_ttl_ms": idempotency_ttl_s * 1000,
            "max_in_flight": max_in_flight,
            "max_backlog_ms": int(backlog.max_wait_s * 1000) if backlog else 0,
            "workers": backlog.workers if backlog else 0,
            "more_urgent": backlog.more_urgent if backlog else (),
        }
        if jobs.batch is not None:
            new["batch"] = {
                "id": f"batch_{uuid.uuid4().hex}",
                "metadata": json.dumps(dict(jobs.batch.metadata)),
                "completed_url": jobs.batch.completed_url,
            }
        specs = (part for pair in zip(job_ids, jobs.specs_json, strict=True) for part in pair)
        with redis_errors():
            outcome, found = self._create(args=[json.dumps(new), *specs])
        match Created(outcome):
            case Created.OVER_QUOTA as refused:
                return Creation(refused)
            case Created.BACKLOG_FULL as refused:
                return Creation(refused, wait_s=int(found) / 1000)
            case Created.CREATED as recorded:
                return Creation(recorded, found, job_ids)
            case known:
                return Creation(known, found)

    def read(self, job_id: str) -> JobRecord | None:
        """Return the record, or None if there is none (any more)."""
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"mf:job:{job_id}"))
        return JobRecord.from_fields(fields) if fields else None

    def status(self, job_id: str) -> Status | None:
        """Return the state alone, for those who wait for it to change."""
        with redis_errors():
            status = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "status"))
        return Status(status) if status else None

    def attempts(self, job_id: str) -> tuple[AttemptView, ...]:
        """Return the latest attempts at a job, oldest first."""
        with redis_errors():
            attempts = cast("list[str]", self._redis.lrange(f"mf:attempts:{job_id}", 0, -1))
        return tuple(AttemptView.from_json(attempt) for attempt in attempts)

    def version(self, job_id: str) -> int | None:
        """Return the number that grows with every change of the record that a watcher wants to see."""
        with redis_errors():
            version = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "version"))
        return int(version) if version else None

    def jobs_of(self, tenant: str, *, before: tuple[int, str] | None, limit: int) -> list[JobRecord]:
        """Return the tenant's records, newest first, that are older than the place ``before`` (created_ms, id)."""
        key = f"mf:jobs:{tenant}"
        newest = "+inf" if before is None else str(before[0])
        offset = 0
        records: list[JobRecord] = []
        with redis_errors():
            while len(records) < limit:
                places = cast(
                    "list[tuple[str, float]]",
                    self._redis.zrange(
                        key, newest, "-inf", byscore=True, desc=True, offset=offset, num=limit, withscores=True
                    ),
                )
                if not places:
                    break
                offset += len(places)
                pipeline = self._redis.pipeline(transaction=False)
                for job_id, created_ms in places:
                    # Those of a batch are all of one millisecond.
                    if before is None or (int(created_ms), job_id) < before:
                        pipeline.hgetall(f"mf:job:{job_id}")
                records += (JobRecord.from_fields(fields) for fields in pipeline.execute() if fields)
        return records[:limit]

    def cancel(self, job_id: str, tenant: str) -> Cancel:
        """End a queued job at once, or ask the worker of a running one to stop."""
        with redis_errors():
            return Cancel(self._cancel(args=[job_id, tenant, self._retention_ms]))

    def retry(self, job_id: str, tenant: str, *, start_deadline_s: int, max_in_flight: int) -> Retried:
        """Queue a failed job once more, with all its attempts before it."""
        with redis_errors():
            token = uuid.uuid4().hex
            return Retried(
                self._retry(args=[job_id, tenant, start_deadline_s * 1000, max_in_flight, token, self._retention_ms])
            )

    def begin_deletion(self, job_id: str, tenant: str) -> Deleted:
        """Close an ended job to retries, so that its objects can be removed."""
        with redis_errors():
            return Deleted(self._delete(args=[job_id, tenant, "begin"]))

    def delete(self, job_id: str, tenant: str) -> Deleted:
        """Forget an ended job; its objects are to be removed before."""
        with redis_errors():
            return Deleted(self._delete(args=[job_id, tenant, "end"]))

    # The worker's side.

    def claim(self, job_id: str, worker: str, *, lease_s: float, max_attempts: int) -> JobRecord | None:
        """Take a job for as long as its lease is beaten; None when it is to be dropped."""
        self.check_version()
        with redis_errors():
            verdict, *fields = self._claim(
                args=[job_id, worker, int(lease_s * 1000), max_attempts, self._retention_ms, uuid.uuid4().hex]
            )
        if verdict != "claimed":
            return None
        return JobRecord.from_fields(dict(zip(fields[::2], fields[1::2], strict=True)))

    def beat(self, record: JobRecord, progress: ProgressView, *, lease_s: float) -> Reply:
        """Keep the lease and show progress; learn whether to stop."""
        with redis_errors():
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
                        record.worker or "",
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
        with redis_errors():
            return Reply(self._finish(args=[record.id, record.fence, status, code, detail, result, self._retention_ms]))

    def note_fenced(self) -> Reply:
        """Count an attempt that found by itself that its job is no longer its own."""
        with redis_errors():
            self._redis.hincrby("mf:totals", "fenced", 1)
        return Reply.FENCED

    def release(self, record: JobRecord, *, delay_s: float, charged: bool, outcome: str = "released") -> Reply:
        """Hand a job back, to be tried again after ``delay_s``; ``charged`` counts the attempt."""
        with redis_errors():
            return Reply(self._release(args=[record.id, record.fence, int(delay_s * 1000), int(charged), outcome]))

    def drain(self, node: str, grace_s: float) -> None:
        """Have a node's running jobs handed back once ``grace_s`` has passed."""
        with redis_errors():
            seconds, _ = self._redis.time()
            self._redis.set(f"mf:draining:{node}", int((seconds + grace_s) * 1000), ex=int(grace_s) + 60)

    def undrain(self, node: str) -> None:
        """Let a node that starts keep its jobs."""
        with redis_errors():
            self._redis.delete(f"mf:draining:{node}")

    # The courier's side.

    def reap(self, *, max_attempts: int, limit: int = 100) -> Reaped:
        """Take back jobs whose lease ran out, and expire those that waited too long."""
        self.check_version()
        with redis_errors():
            return Reaped(*self._reap(args=[limit, max_attempts, self._retention_ms]))

    # For those who watch.

    def ping(self) -> None:
        """Raise QueueUnavailable unless Redis answers."""
        with redis_errors():
            self._redis.ping()
