"""The authoritative state of every job, in Redis: one atomic script for each transition, by Redis' own clock.

The queue is here as well: a worker claims the next job, and Celery's messages only say that there may be one.  They may
be lost, late or delivered twice.  A claim gives the worker a lease, which it renews by beats, a fence, which grows with
each claim, and a random token: whoever holds an older pair can change nothing, even if a Redis that lost its last
writes gives out the same fence again.

Keys (all begin with ``mf:``; one Redis, not a cluster; times are milliseconds since the epoch; docs/ledger.md lists the
fields):

    job:{id}              hash    the record; expires ``retention_s`` after the job's end, but not before the
                                  webhook of that end was attempted once, or a week has passed
    jobs:{tenant}         zset    job id → created; the tenant's list; expired records leave it as they are met, and the
                                  key expires after the last of them                        (reconciler.py)
    bytes:{tenant}        hash    what the tenant's records take: ``live``, and by the time when they will have expired;
                                  and the places of requests that are storing their images; expires as the list does
                                                                                            (lua/bytes.lua)
    tenants               zset    tenant → when it last began with no job in flight; a courier drops those of whom
                                  nothing is left                                           (reconciler.py)
    batches               zset    batch id → created; the open batches
    expanding:{tenant}    set     ids of the open batches that couriers expand
    batch_work            zset    batch id → when a courier looks after it: one that is being expanded or deleted
    inflight:{tenant}     set     ids of jobs that have not ended
    stored:{tenant}       zset    hour since the epoch → bytes of images that were stored in it; expires after
                                  ``upload_window_s``
    idempotency:{tenant}:{key}  hash    job (or batch), digest of the body; expires after ``idempotency_ttl_s``
    queues                set     queues where jobs may wait; the courier removes empty ones
    queued:{queue}        zset    job id → created; all waiting jobs
    waiting:{queue}:{tenant}  zset  job id → created; those of a tenant that wait in its turns
    turns:{queue}         zset    tenant → its virtual time: the lowest is next; one without waiting jobs is removed
                                  when its turn comes                                         (lua/turns.lua)
    returned:{queue}      zset    job id → when it is due; jobs that were handed back, claimed before all others
    image_node:{tenant}:{image}  string  the node that last did a job of this image, and so has it in memory; expires
                                  ten minutes after that job
    latest:{node}         string  a node's last claim: process, number, token, job; a repeated call finds its own, and
                                  one that comes late claims nothing; expires after two hours
    called:{node}         string  the job that a node was called to; expires within a second
    leases                zset    job id → when the lease runs out; the running jobs
    deadlines             zset    job id → when it must have started
    batch:{id}            hash    a batch: tenant, times, how many of its jobs are in each state; expires
                                  ``retention_s`` after the end of the last one, but not before its webhook was
                                  attempted once, or a week has passed                        (batches.py)
    batch_jobs:{id}       list    ids of its jobs, in the order of its images; expires ``retention_s`` after that end
    batch_open:{id}       zset    job id → its number: those of an expanded batch that have not ended
    batch_ended:{id}      list    job id and number, or JSON of what became no job: to be collected
    batch_pages:{id}      list    JSON of each page of what was collected; expires as the batch does
    attempts:{id}         list    earlier attempts at a job that was recorded before version 2, as JSON; expires as the
                                  record does
    draining:{node}       string  when the node must hand its jobs back, and until then it claims none; expires a
                                  minute later
    totals                hash    counts since the ledger began: created, each end, fenced, requeued, retried, rung,
                                  and webhooks by how they ended; pace:{queue}, a moving average of the time that one
                                  of its jobs takes, in ms
    deliveries            zset    delivery id → when to send it; the waiting webhooks         (deliveries.py)
    delivery:{id}         hash    a webhook: tenant, subject, URL, state, bytes; expires ``retention_s`` after its
                                  end; without an end it is given up after a week, and expires after two
    tries:{id}            list    its latest attempts as JSON; expires as the delivery does
    deliveries:{tenant}   zset    delivery id → created; the tenant's log; drops expired ones over time
    told:{id}             list    ids of the deliveries about the job or batch; expires two weeks after the last
    lanes, lanes:{tenant}  zset, zset  tenant, and host → when to check what is due; nothing due, no entry
    due:{tenant}:{host}   zset    delivery id → when it is due
    sending:{tenant}:{host}  zset  delivery id → when the courier's lease on it runs out
    breaker:{tenant}:{host}  hash  failures in a row, until when the host is paused; expires after a day
    hung:{tenant}         set     hosts that have hung since one last answered, as many as count; expires after a day
    receivers:{tenant}    hash    when one last answered, until when all are paused; expires after a day
    redelivered:{tenant}  string  how many webhooks were sent again on request; expires an hour after the first
    disabled:{tenant}:{sha1}  string  of a URL: when it responded 410; expires after ``DISABLED_S`` (deliveries.py)
    webhook_secrets:{tenant}  zset  generation of the tenant's secret → until when it signs  (webhook_secrets.py)
    workers               zset    node → last seen, in seconds; a courier drops those gone for long    (workers.py)
    host:{host}           zset    the same, of one machine; expires unless renewed
    serving:{model}       zset    the same, of those that have a model loaded, and of ``outputs`` those that
                                  take jobs which need none; expires unless renewed
    withdrawn:{model}     zset    the same, of those that take no jobs; expires unless renewed
    starting:{model}      zset    the same, of those that load it; expires unless renewed
    draining_nodes:{model}  zset  the same, of those that shut down; expires unless renewed
    models                zset    model → a worker with it last seen, in seconds; expires unless renewed
    reconciled            string  exists while nothing need be compared; expires after ``reconcile_s``  (reconciler.py)
    swept                 string  exists while no sweep is due; expires after ``sweep_s``     (sweeps.py)
    sweep                 string  the lock of a running sweep; expires unless renewed         (sweeps.py)
    schema                string  the version of the ledger's schema                          (version.py)
    confirmed             string  written before each WAIT and WAITAOF                        (durability.py)
    clock                 string  the time by which the ledger goes                           (clock.py)
    epoch                 hash    id: of this ledger, random; missed, missed_ms: another that was here before, as a
                                  program remembers, and since when it is missed               (epoch.py)
    upgrade               string  the lock of a running upgrade; expires unless renewed       (version.py)
    worker:{node}         hash    what the node serves; expires unless renewed                (workers.py)
    worker:{node}:faults  string  how many faults of its own it met in a row; expires after an hour
    keys, key:{id}        zset, hash  API keys                                                (api_keys.py)
    limits:{…}            string  requests of a key or a client address; expires            (api/limits.py)

And one channel, ``ended``: the id of each job, as it ends                                  (ends.py)
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import cast

import redis

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.ledger.clock import ledger_now_ms
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.ledger.durability import Durability
from maskfleet.jobs.ledger.outcomes import (
    BacklogLimit,
    Cancel,
    Claim,
    Created,
    Creation,
    Deleted,
    JobEnd,
    JobsPage,
    NewImages,
    NewJobs,
    NodeCall,
    Place,
    Reaped,
    Reply,
    Reservation,
    Retried,
)
from maskfleet.jobs.ledger.version import SCHEMA, Schema
from maskfleet.jobs.ledger.workers import WORKER_TTL_S
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.record import AttemptView, JobRecord, ProgressView, ResultSummary, SpecSummary
from maskfleet.jobs.settings import DEFAULT_MAX_RECORD_BYTES
from maskfleet.jobs.status import Status

#: The most ids that one page of a list looks at: those of other states, and those whose record has expired.
MAX_LOOKED_AT = 1000

logger = get_logger()


#: A request stores its images within this time, or the places that it reserved are given to others.
RESERVED_MS = 120_000


def _summary(jobs: NewJobs) -> str:
    """Return what the specs of jobs that are recorded together have in common; of a batch, not the image."""
    if not jobs.specs_json:
        return "{}"
    summary = SpecSummary.model_validate_json(jobs.specs_json[0])
    return summary.model_dump_json(exclude_defaults=True, exclude={"image"} if jobs.batch or jobs.step else None)


def new_job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


class Ledger:
    """The jobs' records and every transition between their states."""

    def __init__(
        self,
        client: redis.Redis,
        retention_s: int,
        tenant_weights: Mapping[str, float] = MappingProxyType({}),
        durability: Durability | None = None,
    ) -> None:
        """tenant_weights: tenants' shares of the workers where they differ from 1.

        durability: of what callers are told was accepted.
        """
        self._redis = client
        self._durability = durability or Durability()
        self._weights = dict(tenant_weights)
        self._schema = Schema(client)
        #: By which the ledger tells a claim that comes late from a new one.
        self._process, self._claims = uuid.uuid4().hex, itertools.count(1)
        self._retention_ms = retention_s * 1000
        self._create = load_script(client, "create")
        self._claim = load_script(client, "claim")
        self._beat = load_script(client, "beat")
        self._finish = load_script(client, "finish")
        self._release = load_script(client, "release")
        self._cancel = load_script(client, "cancel")
        self._retry = load_script(client, "retry")
        self._delete = load_script(client, "delete")
        self._list = load_script(client, "list_jobs")
        self._reap = load_script(client, "reap")
        self._silent = load_script(client, "silent")
        self._versions = load_script(client, "versions")

    def check_version(self) -> None:
        """Raise LedgerVersion when the data in Redis has another version; an empty Redis is given this one.

        Programs check at start.  One that starts while Redis is down fails later, before the first job that it creates,
        claims or takes back.
        """
        self._schema.check()

    # The caller's side.

    def reserve(
        self,
        jobs: NewJobs,
        images: NewImages,
        *,
        max_in_flight: int,
        places: bool = True,
        backlog: BacklogLimit | None = None,
        max_bytes: int = DEFAULT_MAX_RECORD_BYTES,
    ) -> Reservation | Creation:
        """Ask whether jobs would be recorded, before their images are stored, and reserve their places and bytes.

        Returns what ``create`` would say, or OVER_STORAGE, if nothing was reserved.  places: whether ``create`` is to
        find the places still free; otherwise bytes alone are reserved.  Raises what ``create`` does.
        """
        ask = {
            "bytes": images.size,
            "max_bytes": images.max_size,
            "window_h": -(-images.window_s // 3600),
            "reserve_ms": RESERVED_MS,
            "token": uuid.uuid4().hex if places else "",
        }
        outcome, found, _, name = self._run_create(jobs, max_in_flight, backlog, max_bytes, {"ask": ask})
        if outcome is Created.RESERVED:
            return Reservation(name, jobs.tenant, images.size, found)
        return self._confirmed(outcome, found)

    def give_back(self, given: Reservation) -> None:
        """Give back what was reserved.  Raises QueueUnavailable."""
        stored = f"mf:stored:{given.tenant}"
        with redis_errors():
            if given.name:
                self._redis.hdel(f"mf:bytes:{given.tenant}", given.name)
            self._redis.zincrby(stored, -given.size, given.hour)
            self._redis.zremrangebyscore(stored, "-inf", 0)

    def create(
        self,
        jobs: NewJobs,
        *,
        max_in_flight: int,
        idempotency_ttl_s: int,
        backlog: BacklogLimit | None = None,
        max_bytes: int = DEFAULT_MAX_RECORD_BYTES,
        reservation: Reservation | None = None,
        call: NodeCall | None = None,
    ) -> Creation:
        """Record jobs in state ``queued``, and their batch if they have one; all or none.

        max_bytes: of all the tenant's records.  reservation: of these jobs; it ends.  call: to learn which node to call
        to the one job, see ``NodeCall``.

        Raises QueueUnavailable when Redis does not respond or is full; then nothing was recorded, or a request with
        the same idempotency key finds what was.  Raises NotConfirmed when it was recorded, and may yet be lost.
        """
        more: dict[str, object] = {
            "reservation": reservation.name if reservation else "",
            "idempotency_ttl_ms": idempotency_ttl_s * 1000,
        }
        if call is not None:
            more["call"] = {"model": call.model, "wait_ms": call.wait_ms, "seen_within_s": WORKER_TTL_S}
        return self._confirmed(*self._run_create(jobs, max_in_flight, backlog, max_bytes, more))

    def _confirmed(self, outcome: Created, found: str, job_ids: tuple[str, ...] = (), node: str = "") -> Creation:
        """Wait until what was recorded is confirmed, if that is asked for.  Raises NotConfirmed."""
        if outcome in (Created.CREATED, Created.KNOWN):
            # Also what was recorded before: its caller may be back because it was not confirmed then.
            key = f"mf:batch:{found}" if found.startswith("batch_") else f"mf:job:{found}"
            self._durability.confirm(self._redis, key, "tenant")
        return _creation(outcome, found, job_ids, node)

    def _run_create(
        self,
        jobs: NewJobs,
        max_in_flight: int,
        backlog: BacklogLimit | None,
        max_bytes: int,
        more: Mapping[str, object],
    ) -> tuple[Created, str, tuple[str, ...], str]:
        """Run CREATE; return its outcome, what it found, the jobs' ids, and the node to call or the reservation."""
        self.check_version()
        job_ids = tuple(new_job_id() for _ in jobs.specs_json)
        new: dict[str, object] = {
            "schema": SCHEMA,
            "tenant": jobs.tenant,
            "queue": jobs.queue,
            "start_deadline_ms": jobs.start_deadline_s * 1000,
            "webhook_url": jobs.webhook.url if jobs.webhook else "",
            "webhook_events": ",".join(jobs.webhook.events) if jobs.webhook else "",
            "idempotency_key": jobs.idempotency_key,
            "body_digest": jobs.body_digest,
            "bucket": jobs.bucket,
            "images": jobs.images,
            "request_id": jobs.origin.request_id,
            "traceparent": jobs.origin.traceparent,
            "sources": [source.shown for source in jobs.sources],
            "file_names": [source.file_name or "" for source in jobs.sources],
            "summary": _summary(jobs),
            "max_in_flight": max_in_flight,
            "max_bytes": max_bytes,
            "max_backlog_ms": int(backlog.max_wait_s * 1000) if backlog else 0,
            "workers": backlog.workers if backlog else 0,
            "more_urgent": backlog.more_urgent if backlog else (),
            "weights": self._weights,
            **more,
        }
        if jobs.batch is not None:
            new["batch"] = {
                "id": f"batch_{uuid.uuid4().hex}",
                "metadata": json.dumps(dict(jobs.batch.metadata)),
                "completed_url": jobs.batch.completed_url,
                **(jobs.batch.expanded if jobs.batch.plan else {}),
            }
        if jobs.step is not None:
            new["step"] = asdict(jobs.step)
        specs = (part for pair in zip(job_ids, jobs.specs_json, strict=True) for part in pair)
        with redis_errors():
            outcome, found, *name = self._create(args=[json.dumps(new), *specs])
        return Created(outcome), found, job_ids, name[0] if name else ""

    def read(self, job_id: str) -> JobRecord | None:
        """Return the record without its spec, or None if there is none, or it has expired."""
        with redis_errors():
            values = cast("list[str | None]", self._redis.hmget(f"mf:job:{job_id}", JobRecord.SHOWN))
        return self._shown(values)

    def _shown(self, values: list[str | None]) -> JobRecord | None:
        fields = {name: value for name, value in zip(JobRecord.SHOWN, values, strict=True) if value is not None}
        if not fields:
            return None
        if "summary" not in fields:  # recorded by a version before 2
            with redis_errors():
                fields["spec"] = str(self._redis.hget(f"mf:job:{fields['id']}", "spec"))
        return JobRecord.from_fields(fields)

    def ends(self, job_ids: Sequence[str]) -> list[JobEnd | None]:
        """Return whose each job is and how it ended, in one round trip; None for one without a record."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hmget(f"mf:job:{job_id}", "tenant", "status", "ended_ms")
            found = pipeline.execute()
        return [
            JobEnd(tenant, Status(status), int(ended_ms) if ended_ms is not None else None) if tenant else None
            for tenant, status, ended_ms in found
        ]

    def spec_json(self, job_id: str, max_bytes: int) -> str:
        """Return a job's spec; empty if the record has given it up, or it is longer than ``max_bytes``."""
        with redis_errors():
            size = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "spec_bytes"))
            if size is None or int(size) > max_bytes:
                return ""
            return cast("str | None", self._redis.hget(f"mf:job:{job_id}", "spec")) or ""

    def read_all(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return several records without their specs, in one round trip; None for one that there is not."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hmget(f"mf:job:{job_id}", JobRecord.SHOWN)
            found = pipeline.execute()
        return [self._listed(values) if values[0] else None for values in found]

    def status(self, job_id: str) -> Status | None:
        """Return only the state, which is cheaper to poll."""
        with redis_errors():
            status = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "status"))
        return Status(status) if status else None

    def statuses(self, job_ids: Sequence[str]) -> list[Status | None]:
        """Return the states of several jobs."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hget(f"mf:job:{job_id}", "status")
            return [Status(status) if status else None for status in pipeline.execute()]

    def versions(self, job_ids: Sequence[str]) -> list[int | None]:
        """Return the versions of several records, by one command; see ``version``."""
        with redis_errors():
            return [int(version) if version else None for version in self._versions(args=job_ids)]

    def attempts(self, job_id: str) -> tuple[AttemptView, ...]:
        """Return the latest attempts at a job, oldest first; the last one has no outcome while the job runs."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hmget(f"mf:job:{job_id}", "attempts", "status", "attempt", "worker", "claimed_ms")
        pipeline.lrange(f"mf:attempts:{job_id}", 0, -1)
        with redis_errors():
            (listed, status, number, worker, claimed_ms), earlier = pipeline.execute()
        attempts = [attempt for attempt in map(json.loads, earlier) if "outcome" in attempt]
        attempts += json.loads(listed or "[]")
        if status == Status.PROCESSING:
            attempts.append({"number": int(number), "worker": worker, "started_ms": int(claimed_ms)})
        return tuple(AttemptView.from_fields(attempt) for attempt in attempts)

    def version(self, job_id: str) -> int | None:
        """Return the record's version, which grows with every change that matters to event streams."""
        with redis_errors():
            version = cast("str | None", self._redis.hget(f"mf:job:{job_id}", "version"))
        return int(version) if version else None

    def page_of(self, tenant: str, *, after: Place | None = None, limit: int, status: Status | None = None) -> JobsPage:
        """Return a page of the tenant's jobs, or of those in a state, without their specs.

        A page may be shorter than ``limit``, or empty, and have a next one: after MAX_LOOKED_AT ids that do not belong
        on it.
        """
        created_ms, job_id = after or ("", "")
        with redis_errors():
            next_ms, next_id, *found = self._list(
                args=[tenant, created_ms, job_id, status or "", limit, MAX_LOOKED_AT, *JobRecord.SHOWN]
            )
        records = tuple(record for values in found if (record := self._listed(values)))
        return JobsPage(records, (int(next_ms), next_id) if next_id else None)

    def _listed(self, values: list[str | None]) -> JobRecord | None:
        """Read a record of a list; one that cannot be read is reported and left out, so that the others are shown."""
        try:
            return self._shown(values)
        except RecordUnreadable as error:
            logger.error("record_unreadable", job_id=values[0], detail=error.detail)
            return None

    def cancel(self, job_id: str, tenant: str) -> Cancel:
        """End a queued job at once, or ask the worker of a running one to stop."""
        with redis_errors():
            return Cancel(self._cancel(args=[job_id, tenant, self._retention_ms]))

    def retry(self, job_id: str, tenant: str, *, start_deadline_s: int, max_in_flight: int) -> Retried:
        """Queue a failed job again, with a full number of attempts."""
        with redis_errors():
            token = uuid.uuid4().hex
            outcome = Retried(
                self._retry(args=[job_id, tenant, start_deadline_s * 1000, max_in_flight, token, self._retention_ms])
            )
        if outcome is Retried.QUEUED:
            self._durability.confirm(self._redis, f"mf:job:{job_id}", "retry", token)
        return outcome

    def begin_deletion(self, job_id: str, tenant: str) -> Deleted:
        """Block retries of an ended job, so that its objects can be deleted."""
        with redis_errors():
            return Deleted(self._delete(args=[job_id, tenant, "begin"]))

    def delete(self, job_id: str, tenant: str) -> Deleted:
        """Delete the record of an ended job; delete its objects first."""
        with redis_errors():
            return Deleted(self._delete(args=[job_id, tenant, "end"]))

    def forget_image_node(self, tenant: str, image: str) -> None:
        """Call no node to jobs of this image any more, until one has done another job of it."""
        with redis_errors():
            self._redis.delete(f"mf:image_node:{tenant}:{image}")

    # The worker's side.

    def claim_next(self, queues: Sequence[str], worker: str, *, lease_s: float, max_attempts: int) -> Claim:
        """Claim the job that is next, for as long as its lease is renewed.

        queues: the most urgent first; each is drained before the next.  A worker that is shutting down gets none.
        A worker claims one job after another, never two at the same time.
        """
        self.check_version()
        limits = int(lease_s * 1000), max_attempts, self._retention_ms
        arguments: list[str | int] = [worker, *limits, uuid.uuid4().hex, self._process, next(self._claims)]
        answer: list[str] = ["again"]
        with redis_errors():
            while answer[0] == "again":  # each call ends some jobs that can no longer be claimed
                answer = self._claim(args=[*arguments, json.dumps(self._weights), *queues])
        if answer[0] == "none":
            return Claim(None)
        _, more_in, more, *fields = answer
        record = JobRecord.from_fields(dict(zip(fields[::2], fields[1::2], strict=True)))
        return Claim(record, more_in, int(more))

    def beat(self, record: JobRecord, progress: ProgressView, *, lease_s: float) -> Reply:
        """Renew the lease and record progress; return whether to stop."""
        with redis_errors():
            return Reply(
                self._beat(
                    args=[
                        record.id,
                        record.fence,
                        record.token,
                        int(lease_s * 1000),
                        progress.stage,
                        progress.done,
                        progress.total,
                        progress.masks,
                        record.worker or "",
                    ]
                )
            )

    def succeed(self, record: JobRecord, result: ResultSummary, *, image_held_s: float = 0) -> Reply:
        """End a job as succeeded; return FENCED when this worker no longer holds it.

        image_held_s: for how long this worker is then called to jobs of the same image, which it has in memory.
        """
        return self._end(record, Status.SUCCEEDED, result=result.model_dump_json(), image_held_s=image_held_s)

    def fail(self, record: JobRecord, code: str, detail: str) -> Reply:
        """End a job as failed."""
        return self._end(record, Status.FAILED, code=code, detail=detail)

    def finish_canceled(self, record: JobRecord) -> Reply:
        """End a running job that its caller canceled."""
        return self._end(record, Status.CANCELED)

    def _end(
        self,
        record: JobRecord,
        status: Status,
        *,
        code: str = "",
        detail: str = "",
        result: str = "",
        image_held_s: float = 0,
    ) -> Reply:
        with redis_errors():
            claim = (record.id, record.fence, record.token)
            held_ms = int(image_held_s * 1000)
            return Reply(self._finish(args=[*claim, status, code, detail, result, self._retention_ms, held_ms]))

    def note_fenced(self) -> Reply:
        """Count an attempt that noticed by itself that it no longer holds its job."""
        with redis_errors():
            self._redis.hincrby("mf:totals", "fenced", 1)
        return Reply.FENCED

    def release(
        self, record: JobRecord, *, delay_s: float, charged: bool, outcome: str = "released", avoid_s: float = 0
    ) -> Reply:
        """Hand a job back, to be retried after ``delay_s``; ``charged``: whether the attempt counts.

        avoid_s: for so long after the delay, another worker takes it, not this one.
        Returns CANCELED when its cancellation was requested: then it has ended.
        """
        claim = (record.id, record.fence, record.token)
        with redis_errors():
            due = (int(delay_s * 1000), int(charged), outcome, self._retention_ms, int(avoid_s * 1000))
            return Reply(self._release(args=[*claim, *due]))

    def drain(self, node: str, grace_s: float) -> None:
        """Let a node claim nothing more, and have its running jobs handed back after ``grace_s``."""
        with redis_errors():
            until_ms = ledger_now_ms(self._redis) + int(grace_s * 1000)
            self._redis.set(f"mf:draining:{node}", until_ms, ex=int(grace_s) + 60)

    def is_draining(self, node: str) -> bool:
        """Return whether a node is shutting down."""
        with redis_errors():
            return bool(self._redis.exists(f"mf:draining:{node}"))

    def undrain(self, node: str) -> None:
        """Clear a node's drain when it starts, so that it claims jobs and keeps them."""
        with redis_errors():
            self._redis.delete(f"mf:draining:{node}")

    # The courier's side.

    def reap(self, *, max_attempts: int, limit: int = 100) -> Reaped:
        """Take back jobs whose lease ran out, and expire jobs that waited too long."""
        self.check_version()
        with redis_errors():
            return Reaped(*self._reap(args=[limit, max_attempts, self._retention_ms]))

    def silent_queues(self) -> dict[str, int]:
        """Return the queues where jobs can be claimed and no bell lies, with the number of those jobs."""
        with redis_errors():
            answer = self._silent(args=[])
        return dict(zip(answer[::2], map(int, answer[1::2]), strict=True))

    # For monitoring.

    def ping(self) -> None:
        """Raise QueueUnavailable unless Redis responds."""
        with redis_errors():
            self._redis.ping()


def _creation(outcome: Created, found: str, job_ids: tuple[str, ...], node: str) -> Creation:
    """Return what came of CREATE.  found: what it gave besides; job_ids: of the jobs, if they were recorded."""
    match outcome:
        case Created.OVER_QUOTA | Created.OVER_STORAGE:
            return Creation(outcome)
        case Created.OVER_BYTES | Created.BACKLOG_FULL:
            return Creation(outcome, wait_s=int(found or 0) / 1000)
        case Created.CREATED:
            return Creation(outcome, found, job_ids, node=node)
        case known:
            return Creation(known, found)
