"""Admission of jobs, one or a batch: check them, store their images, record them in one step, ring for a worker.

The ledger is asked before an image is stored, and reserves the jobs' places: what is refused leaves nothing behind.
Whatever can be checked at once is rejected here, before anything is recorded.  Once recorded, a job is queued; a bell
that cannot be rung now is rung by the courier.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from maskfleet.api.images import check_image, for_each, store_image, stored_source
from maskfleet.api.known_images import find_named
from maskfleet.api.request_body import MAX_SPEC_BYTES, UNSTORED, Submission, spec_too_large
from maskfleet.api.services import Services, view_with_spec
from maskfleet.api.sources import check_address, check_addresses, check_image_source, check_mask_inputs
from maskfleet.jobs import tracing
from maskfleet.jobs.errors import (
    BacklogFull,
    InvalidRequest,
    JobError,
    NotFound,
    OverQuota,
    OverStorage,
    QueueUnavailable,
    RecordsFull,
)
from maskfleet.jobs.fleet import OUTPUTS
from maskfleet.jobs.ledger.outcomes import (
    BacklogLimit,
    Created,
    Creation,
    NewBatch,
    NewImages,
    NewJobs,
    NodeCall,
    Origin,
    Reservation,
)
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.queue import more_urgent_queues, queue_name
from maskfleet.jobs.schema.base64_text import decode_base64
from maskfleet.jobs.schema.batch import BatchCounts, BatchRecord, BatchView
from maskfleet.jobs.schema.batch_spec import Batch, job_of
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import AnySpec, JobRecord, JobView
from maskfleet.jobs.schema.spec import (
    IMAGE_COMES_BESIDE,
    DerivedJob,
    EverythingJob,
    ImageSource,
    JobOptions,
    dump_spec,
)
from maskfleet.jobs.schema.wire import BATCH_ID
from maskfleet.jobs.status import Status

#: The limit on all specs of a batch together; each of its jobs keeps its own in Redis, which holds small things only.
MAX_BATCH_BYTES = 8 * 2**20

Options = TypeVar("Options", bound=JobOptions)
View = TypeVar("View", JobView, BatchView)

logger = get_logger()


@dataclass(frozen=True, slots=True)
class Admitted(Generic[View]):
    """A job or a batch that is recorded.  known: it had been before, under the same idempotency key."""

    view: View
    known: bool


def admit_job(
    submission: Submission, tenant: str, idempotency_key: str, services: Services, address: str, origin: Origin
) -> Admitted[JobView]:
    """Check a job, store the image sent with it, record it and ring for a worker."""
    spec, image = with_model(submission.spec, services), submission.image
    unstored = ImageSource(upload_id=UNSTORED, file_name=spec.image.file_name) if image is not None else spec.image
    if _json_size(spec.model_copy(update={"image": unstored})) > MAX_SPEC_BYTES:
        raise spec_too_large()
    named = find_named(spec.image, tenant, services)
    check_addresses(spec.model_copy(update={"image": named.source}), services.settings)
    check_mask_inputs(spec.prompts, tenant, services)
    _check_image(named.source, image, spec.prompts, tenant, services)
    named.check_prompts(spec.prompts)
    source = services.cpu.run(len(image or b""), stored_source, named.source, image)
    spec_json = dump_spec(spec.model_copy(update={"image": source}))
    # Without its name: the same image may come with one in a multipart request, and without one in JSON.
    as_sent = (source if spec.image.image_id is None else spec.image).model_copy(update={"file_name": None})
    jobs = NewJobs(
        tenant=tenant,
        queue=queue_name(str(spec.model), spec.priority),
        specs_json=(spec_json,),
        start_deadline_s=spec.start_deadline_s,
        webhook=spec.webhook or services.settings.default_webhook(tenant),
        idempotency_key=idempotency_key,
        body_digest=_digest(dump_spec(spec.model_copy(update={"image": as_sent}))) if idempotency_key else "",
        bucket=services.store.bucket,
        images=(source.name,),
        origin=origin,
        sources=(source,),
    )
    reservation = None
    if image is not None and (reservation := _reserve(jobs, len(image), str(spec.model), services)):
        with _giving_back(reservation, services):
            store_image(image, tenant, services)
    creation = record(jobs, str(spec.model), services, reservation, call=_node_call(spec, services))
    return shown(
        creation,
        lambda: _job_view(creation.id, services, address),
        lambda: _job_as_created(creation, jobs).view(services.settings.model_name, address, attempts=()),
        job_id=creation.id,
    )


def admit_derived(
    spec: DerivedJob, tenant: str, idempotency_key: str, services: Services, address: str, origin: Origin
) -> Admitted[JobView]:
    """Record a job on what an earlier one wrote, which needs no model, and ring for a worker."""
    spec_json = dump_spec(spec)
    if len(spec_json.encode()) > MAX_SPEC_BYTES:
        raise spec_too_large()
    if spec.webhook is not None:
        check_address("/webhook/url", spec.webhook.url, services.settings)
    jobs = NewJobs(
        tenant=tenant,
        queue=queue_name(OUTPUTS, spec.priority),
        specs_json=(spec_json,),
        start_deadline_s=spec.start_deadline_s,
        webhook=spec.webhook or services.settings.default_webhook(tenant),
        idempotency_key=idempotency_key,
        body_digest=_digest(spec_json) if idempotency_key else "",
        bucket=services.store.bucket,
        images=(spec.image.name,),
        origin=origin,
        sources=(spec.image,),
    )
    creation = record(jobs, OUTPUTS, services, None)
    return shown(
        creation,
        lambda: _job_view(creation.id, services, address),
        lambda: _job_as_created(creation, jobs).view(services.settings.model_name, address, attempts=()),
        job_id=creation.id,
    )


def admit_batch(
    spec: Batch, tenant: str, idempotency_key: str, services: Services, address: str, origin: Origin
) -> Admitted[BatchView]:
    """Check a batch, store the images sent with it, record it and ring for workers.

    All or nothing: an error in one image names the image, and nothing is recorded.
    """
    spec = with_model(spec, services)
    _check_batch_size(spec, services)
    _check_batch_addresses(spec, services)
    check_mask_inputs(spec.prompts, tenant, services)
    images = for_each(spec.images, lambda image: _checked(image, spec.prompts, tenant, services))
    specs_json = tuple(dump_spec(job_of(spec, image.source)) for image in images)
    as_sent = tuple(dump_spec(job_of(spec, image.as_sent)) for image in images)
    size = sum({image.source.name: image.size for image in images}.values())  # one image, sent twice, is stored once
    default = services.settings.default_webhook(tenant)
    webhook_json = spec.webhook.model_dump_json() if spec.webhook else ""
    completed_url = spec.webhook.completed_url if spec.webhook else default.url if default else ""
    jobs = NewJobs(
        tenant=tenant,
        queue=queue_name(str(spec.model), spec.priority),
        specs_json=specs_json,
        start_deadline_s=spec.start_deadline_s,
        webhook=spec.webhook.of_jobs if spec.webhook else None,
        idempotency_key=idempotency_key,
        body_digest=_digest("batch", webhook_json, *as_sent) if idempotency_key else "",
        batch=NewBatch(completed_url, spec.metadata),
        bucket=services.store.bucket,
        images=tuple(image.source.name for image in images),
        origin=origin,
        sources=tuple(image.source for image in images),
    )
    reservation = None
    if size and (reservation := _reserve(jobs, size, str(spec.model), services)):
        with _giving_back(reservation, services):
            for_each(spec.images, lambda image: store_image(_inline(image, services), tenant, services))
    creation = record(jobs, str(spec.model), services, reservation)
    return shown(
        creation,
        lambda: batch_view(find_batch(creation.id, tenant, services), services, address),
        lambda: _batch_as_created(creation, jobs, spec.metadata).view(address, creation.job_ids),
        batch_id=creation.id,
    )


# Check.


def with_model(spec: Options, services: Services) -> Options:
    """Write the model's name into the spec, so that changing the default later does not change the job."""
    names = services.settings.model_names
    if spec.model is not None and spec.model not in names:
        detail = f"Unknown model; this service has {', '.join(names)}."
        raise InvalidRequest.at("/model", "unknown_model", detail)
    return spec.model_copy(update={"model": spec.model or services.settings.model_name})


def _check_batch_size(spec: Batch, services: Services) -> None:
    most = services.settings.max_batch_images
    if len(spec.images) > most:
        detail = f"A batch may have at most {most:,} images; send several batches."
        raise InvalidRequest.at("/images", "too_many_images", detail)
    shared = _json_size(job_of(spec, ImageSource(upload_id=UNSTORED)))
    named = [len(image.model_dump_json(exclude={"base64"}).encode()) for image in spec.images]
    if shared + max(named) > MAX_SPEC_BYTES:
        raise spec_too_large()
    if shared * len(named) + sum(named) > MAX_BATCH_BYTES:
        raise InvalidRequest(
            "batch_too_large",
            f"The jobs of a batch, without their images, may total at most {MAX_BATCH_BYTES // 2**20} MiB. "
            "Split the batch, or use fewer prompts.",
            status=413,
        )


def _check_batch_addresses(spec: Batch, services: Services) -> None:
    if spec.webhook is not None:
        check_address("/webhook/url", spec.webhook.url, services.settings)
    for number, image in enumerate(spec.images):
        if image.url is not None:
            check_address(f"/images/{number}/url", image.url, services.settings)


def _check_image(
    source: ImageSource, data: bytes | None, prompts: tuple[Prompt, ...], tenant: str, services: Services
) -> None:
    """Refuse an image that is no use.  data: what came with the request; None where the source names something."""
    if data is None:
        check_image_source(source, tenant, services)
    else:
        services.cpu.run(len(data), check_image, data, prompts, services.settings)


@dataclass(frozen=True, slots=True)
class _CheckedImage:
    """An image of a batch.

    source: once it is stored.  as_sent: the same, but for one named by its id, which may come to stand for more than it
    does now.  size: how many bytes are to be stored.
    """

    source: ImageSource
    as_sent: ImageSource
    size: int


def _checked(source: ImageSource, prompts: tuple[Prompt, ...], tenant: str, services: Services) -> _CheckedImage:
    """Check an image of a batch."""
    named = find_named(source, tenant, services)
    if named.source.url is not None:
        check_address("/image/url", named.source.url, services.settings)
    data = _inline(named.source, services)
    _check_image(named.source, data, prompts, tenant, services)
    named.check_prompts(prompts)
    size = len(data or b"")
    stored = services.cpu.run(size, stored_source, named.source, data)
    return _CheckedImage(stored, stored if source.image_id is None else source, size)


def _json_size(spec: AnySpec) -> int:
    return len(dump_spec(spec).encode())


def _inline(image: ImageSource, services: Services) -> bytes | None:
    """Return the bytes of an image sent inline with a batch, if any; decoded on demand, since there may be many."""
    if image.base64 is None:
        return None
    return services.cpu.run(len(image.base64), decode_base64, image.base64)


def _digest(*parts: str) -> str:
    """Return a digest that distinguishes bodies; specs name inline images by a hash of their bytes."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# Reserve, record and ring.


def reserve_upload(tenant: str, size: int, services: Services) -> None:
    """Count an image that a tenant is about to upload.  Raises OverQuota if it is too much, or no job could use it."""
    spec_json = dump_spec(EverythingJob(mode="everything", image=IMAGE_COMES_BESIDE))
    one_job = NewJobs(tenant=tenant, queue="", specs_json=(spec_json,), start_deadline_s=0)
    asked = services.ledger.reserve(
        one_job,
        _new_images(tenant, size, services),
        max_in_flight=services.settings.jobs_in_flight(tenant),
        max_bytes=services.settings.record_bytes(tenant),
        places=False,
    )
    if isinstance(asked, Creation):
        _refuse(asked.outcome, asked.wait_s, tenant, services)


def _reserve(jobs: NewJobs, size: int, model: str, services: Services) -> Reservation | None:
    """Reserve what the jobs need before their images are stored, or raise why not.

    None if they are recorded already, under the same idempotency key: then the images are stored, too.
    """
    asked = services.ledger.reserve(
        jobs,
        _new_images(jobs.tenant, size, services),
        max_in_flight=services.settings.jobs_in_flight(jobs.tenant),
        backlog=_backlog_limit(model, jobs.queue, services),
        max_bytes=services.settings.record_bytes(jobs.tenant),
    )
    if isinstance(asked, Reservation):
        return asked
    if asked.outcome is not Created.KNOWN:
        _refuse(asked.outcome, asked.wait_s, jobs.tenant, services)
    return None


@contextmanager
def _giving_back(reservation: Reservation, services: Services) -> Iterator[None]:
    """Give back what was reserved if the images cannot be stored."""
    try:
        yield
    except JobError:
        with suppress(QueueUnavailable):  # then they are given back by themselves, a little later
            services.ledger.give_back(reservation)
        raise


def _new_images(tenant: str, size: int, services: Services) -> NewImages:
    return NewImages(size, services.settings.upload_bytes(tenant), services.settings.upload_window_s)


def _node_call(spec: AnySpec, services: Services) -> NodeCall | None:
    """Return the question for the node that has the image in memory; None where that would save nothing."""
    wait_ms = services.node_calls.wait_ms
    return None if spec.mode == "everything" or not wait_ms else NodeCall(str(spec.model), wait_ms)


def record(
    jobs: NewJobs, model: str, services: Services, reservation: Reservation | None, *, call: NodeCall | None = None
) -> Creation:
    creation = services.ledger.create(
        jobs,
        max_in_flight=services.settings.jobs_in_flight(jobs.tenant),
        idempotency_ttl_s=services.settings.idempotency_ttl_s,
        backlog=_backlog_limit(model, jobs.queue, services) if jobs.specs_json else None,
        max_bytes=services.settings.record_bytes(jobs.tenant),
        reservation=reservation,
        call=call,
    )
    match creation.outcome:
        case Created.KNOWN:
            return creation
        case Created.CREATED if jobs.batch is None:
            tracing.current().note({"maskfleet.job_id": creation.id, "maskfleet.tenant": jobs.tenant})
            logger.info("job_created", job_id=creation.id, queue=jobs.queue, tenant=jobs.tenant)
        case Created.CREATED:
            tracing.current().note({"maskfleet.batch_id": creation.id, "maskfleet.tenant": jobs.tenant})
            logger.info("batch_created", batch_id=creation.id, jobs=len(creation.job_ids), tenant=jobs.tenant)
        case refused:
            _refuse(refused, creation.wait_s, jobs.tenant, services)
    if jobs.specs_json and (not creation.node or not _called(creation, jobs, services)):
        ring(jobs.queue, services, len(creation.job_ids))
    return creation


def _called(creation: Creation, jobs: NewJobs, services: Services) -> bool:
    """Call the node that has the job's image; return whether it could be called."""
    try:
        services.node_calls.call(creation.node, creation.id, jobs.queue, tenant=jobs.tenant, image=jobs.images[0])
    except QueueUnavailable:
        return False
    return True


def _backlog_limit(model: str, queue: str, services: Services) -> BacklogLimit | None:
    """Return the limit on a new job's expected wait; None for no limit."""
    if not services.settings.max_backlog_s:
        return None
    return BacklogLimit(
        services.settings.max_backlog_s, services.worker_registry.serving(model), more_urgent_queues(queue)
    )


def _refuse(outcome: Created, wait_s: float, tenant: str, services: Services) -> NoReturn:
    """Raise the error for an outcome in which the ledger recorded nothing.  wait_s: see Creation."""
    match outcome:
        case Created.OVER_QUOTA:
            raise over_quota(services.settings.jobs_in_flight(tenant))
        case Created.OVER_BYTES:
            raise RecordsFull(wait_s, services.settings.record_bytes(tenant))
        case Created.BACKLOG_FULL:
            raise BacklogFull(wait_s, services.settings.max_backlog_s)
        case Created.OVER_STORAGE:
            raise OverStorage(services.settings.upload_bytes(tenant))
        case Created.TOO_MANY_BATCHES:
            raise OverQuota(
                "too_many_batches",
                f"At most {services.settings.max_open_batches} of your batches from a prefix or a manifest may be open "
                "at once. Wait until one has ended, or cancel one.",
            )
        case _:
            raise InvalidRequest(
                "idempotency_key_reused",
                "This Idempotency-Key was already used with another body. Use a new key for a new request.",
            )


def over_quota(max_jobs_in_flight: int) -> OverQuota:
    return OverQuota(
        "too_many_jobs_in_flight",
        f"At most {max_jobs_in_flight} of your jobs may be queued or running. Wait until some have ended.",
    )


def ring(queue: str, services: Services, jobs: int = 1) -> None:
    """Wake workers for recorded jobs; while Redis is unavailable that is left to the courier."""
    try:
        services.bells.ring(queue, jobs)
    except QueueUnavailable:
        logger.warning("bell_left_to_courier", queue=queue)


# Show.


def shown(
    creation: Creation, read: Callable[[], View], as_created: Callable[[], View], **logged: str
) -> Admitted[View]:
    """Read back what was recorded; if Redis has failed since, show a new record as it was created."""
    known = creation.outcome is Created.KNOWN
    try:
        return Admitted(read(), known)
    except (QueueUnavailable, NotFound):
        if known:
            raise
    logger.warning("record_not_read_back", **logged)
    return Admitted(as_created(), known)


def _job_view(job_id: str, services: Services, address: str) -> JobView:
    record = services.ledger.read(job_id)
    if record is None:
        raise NotFound("job_not_found", "The job for this Idempotency-Key no longer exists. Use a new key.")
    return view_with_spec(record, services, address)


def find_batch(batch_id: str, tenant: str, services: Services) -> BatchRecord:
    """Return the tenant's batch.  Another tenant's batch looks exactly like one that does not exist."""
    record = services.batches.read(batch_id) if re.fullmatch(BATCH_ID, batch_id) else None
    if record is None or record.tenant != tenant or record.deleting:
        raise NotFound("batch_not_found", "You have no batch with this id, or its record has expired.")
    return record


def batch_view(record: BatchRecord, services: Services, address: str) -> BatchView:
    """Show a batch with the ids of its jobs."""
    named = services.batches.job_ids if record.source is None else services.batches.open_jobs
    return record.view(address, named(record.id))


def _job_as_created(creation: Creation, jobs: NewJobs) -> JobRecord:
    return JobRecord.from_fields(
        {
            "id": creation.id,
            "tenant": jobs.tenant,
            "queue": jobs.queue,
            "spec": jobs.specs_json[0],
            "status": Status.QUEUED,
            "created_ms": str(int(time.time() * 1000)),
            "attempt": "0",
            "fence": "0",
            "image": next(iter(jobs.images), ""),
            "request_id": jobs.origin.request_id,
            "source": jobs.sources[0].shown,
            "file_name": jobs.sources[0].file_name or "",
        }
    )


def _batch_as_created(creation: Creation, jobs: NewJobs, metadata: dict[str, str]) -> BatchRecord:
    return BatchRecord(
        id=creation.id,
        tenant=jobs.tenant,
        created_ms=int(time.time() * 1000),
        ended_ms=None,
        ends=0,
        counts=BatchCounts(queued=len(creation.job_ids), processing=0, succeeded=0, failed=0, canceled=0, expired=0),
        metadata=metadata,
        request_id=jobs.origin.request_id,
    )
