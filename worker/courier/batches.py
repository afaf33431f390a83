"""A courier's work on batches from a prefix or a manifest: create jobs, collect what has ended, make files of it.

Each call does a bounded amount: a step of each batch that has work.  What a step changes is changed in one script
of the ledger, from a place that the batch must still be at: who dies loses the step, and no two take the same.
Only the files at the end take as long as all results are large: a courier makes them beside its steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from structlog.contextvars import bound_contextvars

from maskfleet.jobs.errors import JobError, NotFound, QueueUnavailable, ServiceError
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import BatchStep, Cancel, Created, NewJobs, Origin
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.messages import Bells
from maskfleet.jobs.schema.batch import BatchRecord, Expansion
from maskfleet.jobs.schema.batch_spec import BatchPlan
from maskfleet.jobs.schema.record import AnySpec, SpecSummary
from maskfleet.jobs.schema.spec import dump_spec, file_name_of
from maskfleet.jobs.settings import CourierSettings
from maskfleet.jobs.storage import Store, batch_prefix, result_prefix
from maskfleet.worker.courier.listing import Found, count_after, grouped, look
from maskfleet.worker.courier.merge import PAGE, Outcome, collect_page, write_files

logger = get_logger()

#: Jobs that one script creates: it keeps Redis from all else for some milliseconds.
CREATED_AT_ONCE, CREATED_BYTES = 200, 4 * 2**20
#: Batches that one call looks after.
BATCHES_AT_ONCE = 100
#: A step takes less, or renews it; after that another courier may take the batch.
LEASE_S = 60.0
#: What has ended is collected when a page is full, or after this time.
COLLECTED_WITHIN_S = 10.0
#: While so many windows of ended jobs are to be collected, no further jobs are created.
MOST_UNCOLLECTED = 4
#: Batches whose files are made at once: each takes a connection, and memory for a part of an upload.
MERGES_AT_ONCE = 3
#: Batches whose images are being counted: so many counts are kept.
MOST_COUNTS = 1000
#: After an error of the store or the ledger, and while the tenant's quota is used up.
PAUSE_S = 5.0

#: Has a function called, now or by another thread.
Begin = Callable[[Callable[[], None]], object]


def _now(task: Callable[[], None]) -> None:
    task()


class Stopped(Exception):
    """The courier is told to stop."""


class BatchWork:
    """The batches of all tenants."""

    def __init__(self, ledger: Ledger, batches: Batches, store: Store, bells: Bells, settings: CourierSettings) -> None:
        self._ledger = ledger
        self._batches = batches
        self._store = store
        self._bells = bells
        self._settings = settings
        self._merges = threading.BoundedSemaphore(MERGES_AT_ONCE)
        #: How many images a prefix has up to a key.  They are only kept here: another courier counts anew.
        self._counts: dict[str, tuple[int, str]] = {}

    def run(self, is_over: Callable[[], bool] = lambda: False, begin: Begin = _now) -> int:
        """Take a step of each batch that is due; return how many there were.  Raises QueueUnavailable.

        begin: begins to make a batch's files, which may take minutes: so that no other batch waits for that.
        """
        for number in range(BATCHES_AT_ONCE):
            if is_over() or not (batch_id := self._batches.take(LEASE_S)):
                return number
            with bound_contextvars(batch_id=batch_id):
                try:
                    again_s = self._step(batch_id, is_over, begin)
                except Stopped:
                    again_s = 0.0
                except QueueUnavailable:
                    raise
                except JobError as error:
                    logger.warning("batch_postponed", code=error.code)
                    again_s = PAUSE_S
                if again_s is not None:
                    self._batches.keep(batch_id, again_s)
        return BATCHES_AT_ONCE

    def _step(self, batch_id: str, is_over: Callable[[], bool], begin: Begin = _now) -> float | None:
        """Do some of what is to be done of one batch; return after how many seconds there may be more.

        It is None if the batch's files are being made: who makes them keeps the lease.
        """
        tick_s = self._settings.tick_s
        batch = self._batches.read(batch_id)
        if batch is None:
            return tick_s
        if batch.deleting:
            return self._delete(batch)
        if batch.expansion is None or batch.ended_ms is not None:
            return tick_s
        plan = BatchPlan.model_validate_json(batch.plan)
        if batch.canceled:
            records = self._ledger.read_all(self._batches.open_jobs(batch.id))
            left = tuple(record.id for record in records if record is not None and not record.cancel_requested)
            cancel_jobs(left, batch.tenant, self._ledger)
        pause_s = self._expand(batch, plan) if batch.expansion is Expansion.OPEN else 0.0
        more = self._collect(batch_id, plan)
        batch = self._batches.read(batch_id)
        if batch is not None and batch.expansion is Expansion.OPEN and batch.found is None and plan.source.prefix:
            self._count(batch, plan)
        if more:
            return 0.0
        if batch is not None and self._is_collected(batch) and self._merges.acquire(blocking=False):
            # For as long as the merges of this courier are at work on others, any courier may take it.
            self._begin_merge(batch, plan, is_over, begin)
            return None
        return max(tick_s, pause_s)

    # Images become jobs.

    def _expand(self, batch: BatchRecord, plan: BatchPlan) -> float:
        """Create jobs, as many as there is room for; return for how long nothing more can be created."""
        # Half of what the tenant may have in flight is left to its other jobs.
        window = max(1, min(self._settings.batch_window, plan.max_in_flight // 2))
        most = max(1, min(CREATED_AT_ONCE, CREATED_BYTES // (len(plan.spec) + 1)))
        open_jobs, to_collect = self._batches.sizes(batch.id)
        room = min(window - open_jobs, MOST_UNCOLLECTED * window - to_collect)
        cursor, listed = batch.cursor, batch.listed
        while room > 0:
            try:
                seen = look(
                    plan,
                    cursor,
                    listed,
                    min(room, most),
                    tenant=batch.tenant,
                    store=self._store,
                    settings=self._settings,
                )
            except ServiceError:
                raise
            except JobError as error:  # the source itself is at fault, or gone
                end = BatchStep(batch.id, cursor, cursor, (), listed, (), True, error.code, error.detail)
                self._create(batch, plan, (), end)
                logger.warning("batch_source_failed", code=error.code)
                return 0.0
            runs = tuple(grouped(seen.found, _summary)) or ((),)
            for place, run in enumerate(runs):
                is_last = place == len(runs) - 1
                after = seen.after if is_last else run[-1].after
                step = BatchStep(
                    batch.id,
                    cursor,
                    after,
                    tuple(one.number for one in run if one.spec is not None),
                    listed + len(run),
                    tuple(_rejected(one) for one in run if one.spec is None),
                    ends=seen.ends and is_last,
                )
                match self._create(batch, plan, run, step):
                    case Created.CREATED:
                        cursor, listed = after, listed + len(run)
                    case Created.MOVED:  # another courier took it, or the batch was canceled
                        return 0.0
                    case _:  # the tenant's quota is used up
                        return PAUSE_S
            room -= len(seen.found)
            if seen.ends:
                logger.info("batch_expanded", listed=listed)
                return 0.0
            if not seen.found:  # a long way through what does not match: the next step goes on
                return 0.0
        return 0.0

    def _count(self, batch: BatchRecord, plan: BatchPlan) -> None:
        """Look further ahead than the jobs do, so that callers learn how many there will be."""
        count, after = self._counts.pop(batch.id, (0, ""))
        more, after = count_after(plan, after, tenant=batch.tenant, store=self._store, settings=self._settings)
        if not after:
            self._batches.note_found(batch.id, count + more)
            return
        self._counts[batch.id] = count + more, after
        if len(self._counts) > MOST_COUNTS:  # of batches that others look after
            del self._counts[next(iter(self._counts))]

    def _create(self, batch: BatchRecord, plan: BatchPlan, run: tuple[Found, ...], step: BatchStep) -> Created:
        specs: list[AnySpec] = [one.spec for one in run if one.spec is not None]
        jobs = NewJobs(
            tenant=batch.tenant,
            queue=plan.queue,
            specs_json=tuple(map(dump_spec, specs)),
            start_deadline_s=plan.start_deadline_s,
            webhook=specs[0].webhook if specs else None,
            bucket=plan.bucket,
            images=tuple(spec.image.name for spec in specs),
            sources=tuple(spec.image for spec in specs),
            origin=Origin(batch.request_id, batch.traceparent),
            step=step,
        )
        creation = self._ledger.create(
            jobs, max_in_flight=plan.max_in_flight, idempotency_ttl_s=0, max_bytes=plan.max_bytes
        )
        if creation.outcome is Created.CREATED and specs:
            try:
                self._bells.ring(plan.queue, len(specs))
            except QueueUnavailable:
                logger.warning("bell_left_to_courier", queue=plan.queue)
        return creation.outcome

    # What has ended is collected.

    def _collect(self, batch_id: str, plan: BatchPlan) -> bool:
        """Write a page about what has ended, if it is time; return whether there may be another one."""
        # First the number of pages, then what this one is made of: so one that is written meanwhile is noticed.
        earlier = self._batches.page_count(batch_id)
        batch = self._batches.read(batch_id)
        if batch is None:
            return False
        ended = self._batches.to_collect(batch_id, PAGE)
        is_last = batch.expansion is not Expansion.OPEN and batch.counts.queued + batch.counts.processing == 0
        waited_s = (self._batches.now_ms() - (batch.collected_ms or batch.created_ms)) / 1000 if ended else 0.0
        if not ended or (len(ended) < PAGE and not is_last and waited_s < COLLECTED_WITHIN_S):
            return False
        records = self._ledger.read_all([one.job_id for one in ended])
        collected = collect_page(batch, ended, records, self._store, coco=plan.coco, geojson=plan.geojson)
        kept_s = self._settings.batch_record_s
        if self._batches.collect(
            batch_id, earlier, collected.entries, collected.page, collected.job_ids, kept_s=kept_s
        ):
            logger.info("batch_collected", jobs=collected.entries)
        return collected.entries < len(ended) or len(ended) == PAGE

    # In the end files are made of all that was collected.

    def _is_collected(self, batch: BatchRecord) -> bool:
        """Return whether all has ended and was collected."""
        if batch.expansion is Expansion.OPEN or batch.counts.queued or batch.counts.processing:
            return False
        return self._batches.sizes(batch.id) == (0, 0)

    def _begin_merge(self, batch: BatchRecord, plan: BatchPlan, is_over: Callable[[], bool], begin: Begin) -> None:
        def merge() -> None:
            with bound_contextvars(batch_id=batch.id):
                try:
                    self._batches.keep(batch.id, self._merge(batch, plan, is_over))
                except JobError as error:  # Redis is down, as the tick says, too; the lease ends by itself
                    logger.warning("batch_postponed", code=error.code)
                # Nothing above this thread would catch it; the batch is due again when its lease ends.
                except Exception:
                    logger.exception("merge_broke")
                finally:
                    self._merges.release()

        try:
            begin(merge)
        except RuntimeError as error:  # the courier is stopping: its threads take nothing more
            self._merges.release()
            raise Stopped from error

    def _merge(self, batch: BatchRecord, plan: BatchPlan, is_over: Callable[[], bool]) -> float:
        """Complete a batch; return after how many seconds to look at it again, if it was not completed."""
        try:
            self._finish(batch, plan, is_over)
        except Stopped:
            return 0.0
        except JobError as error:
            logger.warning("batch_postponed", code=error.code)
            return PAUSE_S
        return self._settings.tick_s

    def _finish(self, batch: BatchRecord, plan: BatchPlan, is_over: Callable[[], bool]) -> None:
        """Make the batch's files and complete it."""
        renewed = time.monotonic()

        def keep() -> None:
            nonlocal renewed
            if is_over():
                raise Stopped
            if time.monotonic() - renewed > LEASE_S / 4:
                self._batches.keep(batch.id, LEASE_S)
                renewed = time.monotonic()

        pages = self._batches.pages(batch.id)
        logger.info("batch_merging", pages=len(pages))
        files = write_files(batch, pages, self._store, keep, coco=plan.coco, geojson=plan.geojson)
        if self._batches.finish(batch.id, len(pages), files, self._settings.retention_s):
            logger.info("batch_completed", files=len(files), pages=len(pages), bytes=sum(file.size for file in files))

    # A batch is deleted.

    def _delete(self, batch: BatchRecord) -> float:
        """Delete some of an ended batch: first its jobs with what they wrote, page by page, at last its record."""
        self._batches.keep(batch.id, 10 * LEASE_S)
        for job_id in self._batches.job_ids(batch.id):
            self._delete_job(job_id, batch.tenant)
        for page in self._batches.pages(batch.id)[:1]:
            try:
                lines = self._store.read(f"{page.prefix}/outcomes.jsonl").splitlines()
            except NotFound:  # the store has lost it; the sweep finds what the jobs wrote
                lines = []
            for line in lines:
                of_job = Outcome.model_validate_json(line).job_id
                if of_job:
                    self._delete_job(of_job, batch.tenant)
            self._batches.forget_page(batch.id, page)
            return 0.0
        if batch.source is not None:
            self._store.delete_prefix(f"{batch_prefix(batch.tenant, batch.id)}/")
        self._batches.end_deletion(batch.id, batch.tenant)
        logger.info("batch_deleted")
        return self._settings.tick_s

    def _delete_job(self, job_id: str, tenant: str) -> None:
        self._ledger.begin_deletion(job_id, tenant)
        self._store.delete_prefix(f"{result_prefix(tenant, job_id)}/")
        self._ledger.delete(job_id, tenant)


def cancel_jobs(job_ids: tuple[str, ...], tenant: str, ledger: Ledger) -> int:
    """Cancel the jobs of a batch that have not ended; return how many there were."""
    return sum(ledger.cancel(job_id, tenant) in (Cancel.CANCELED, Cancel.REQUESTED) for job_id in job_ids)


def _summary(spec: AnySpec) -> str:
    """Return what jobs that are recorded together share."""
    summary = SpecSummary.model_validate_json(dump_spec(spec))
    return summary.model_dump_json(exclude_defaults=True, exclude={"image"})


def _rejected(one: Found) -> str:
    outcome = Outcome(
        number=one.number,
        status="rejected",
        source=one.source or None,
        file_name=file_name_of(one.source) if one.source else None,
        code=one.error.code if one.error else None,
        detail=one.error.detail[:1000] if one.error else None,
    )
    return outcome.model_dump_json(exclude_none=True)
