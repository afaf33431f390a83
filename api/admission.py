"""A job at the door: checked, its image stored, recorded, put into the queue."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from api.image_header import ImageHeader, read_header
from api.intake import MAX_SPEC_BYTES, UNSTORED, Submission, spec_too_large
from api.services import Services, whole_view
from api.sources import check_addresses, check_image_source, check_mask_inputs
from jobs.errors import (
    BacklogFull,
    FieldFault,
    InvalidRequest,
    NotFound,
    OverQuota,
    QueueUnavailable,
)
from jobs.logs import get_logger
from jobs.prompts import Prompt, check_prompts_on_image
from jobs.queue import more_urgent_queues, queue_name
from jobs.record import JobRecord, JobView, Spec
from jobs.spec import ImageSource, JobOptions, dump_spec
from jobs.status import Status
from jobs.transitions import BacklogLimit, Created, NewJob

Options = TypeVar("Options", bound=JobOptions)

logger = get_logger()


@dataclass(frozen=True, slots=True)
class Admitted:
    """A job that is recorded.  known: it already was, under the same idempotency key."""

    view: JobView
    known: bool


def admit(submission: Submission, tenant: str, idempotency_key: str, door: Services, address: str) -> Admitted:
    """Check a job, store the image that came with it, record it and put it into the queue.

    Whatever can be known at once is refused here; then nothing was recorded.  Once recorded, the job is never
    lost: a message that cannot be sent now is sent later by the courier.
    """
    spec = with_model(submission.spec, door)
    _check_size(spec, submission)
    check_addresses(spec, door.settings)
    check_mask_inputs(spec.prompts, tenant, door)
    if submission.image is not None:
        spec = _from_upload(spec, _store_image(spec, submission.image, tenant, door))
    else:
        check_image_source(spec.image, tenant, door)
    job = NewJob(
        tenant=tenant,
        queue=queue_name(str(spec.model), spec.priority),
        spec_json=dump_spec(spec),
        start_deadline_s=spec.start_deadline_s,
        webhook=spec.webhook or door.settings.default_webhook(tenant),
        idempotency_key=idempotency_key,
        # An inline image is in the spec by its upload id, which is derived from its bytes.
        body_digest=hashlib.sha256(dump_spec(spec).encode()).hexdigest() if idempotency_key else "",
    )
    job_id, known = _record(job, str(spec.model), door)
    if not known:
        publish(job_id, job.queue, door)
    return Admitted(_look_up(job_id, job, door, address, known=known), known)


def publish(job_id: str, queue: str, door: Services) -> bool:
    """Put a recorded job into its queue; when that cannot be done now, the courier does it later.  Say which."""
    try:
        door.publisher.publish(job_id, queue)
        door.outbox.published(job_id)
    except QueueUnavailable:
        logger.warning("publish_left_to_courier", job_id=job_id)
        return False
    return True


def over_quota(max_jobs_in_flight: int) -> OverQuota:
    return OverQuota(
        "too_many_jobs_in_flight",
        f"{max_jobs_in_flight} jobs of yours are queued or running. Wait until some have ended.",
    )


def refuse(outcome: Created, wait_s: float, tenant: str, door: Services) -> NoReturn:
    """Raise the error that says why the ledger recorded nothing.  wait_s: with BACKLOG_FULL."""
    match outcome:
        case Created.OVER_QUOTA:
            raise over_quota(door.settings.jobs_in_flight(tenant))
        case Created.BACKLOG_FULL:
            raise BacklogFull(wait_s, door.settings.max_backlog_s)
        case _:
            raise InvalidRequest(
                "idempotency_key_reused",
                "This Idempotency-Key already stands for another body. Use a new key for what is new.",
            )


def backlog_limit(model: str, queue: str, door: Services) -> BacklogLimit | None:
    """How long a job may have to wait; None for any time."""
    if not door.settings.max_backlog_s:
        return None
    return BacklogLimit(door.settings.max_backlog_s, door.roster.serving(model), more_urgent_queues(queue))


def with_model(spec: Options, door: Services) -> Options:
    """Write the model's name into the spec, so that a later change of the default does not change the job."""
    names = door.settings.model_names
    if spec.model is not None and spec.model not in names:
        detail = f"This service has {', '.join(names)}."
        raise InvalidRequest(
            "unknown_model", f"/model: {detail}", faults=(FieldFault("/model", "unknown_model", detail),)
        )
    return spec.model_copy(update={"model": spec.model or door.settings.model_name})


def _from_upload(spec: Spec, upload_id: str) -> Spec:
    return spec.model_copy(update={"image": ImageSource(upload_id=upload_id)})


def _check_size(spec: Spec, submission: Submission) -> None:
    recorded = _from_upload(spec, UNSTORED) if submission.image is not None else spec
    if len(dump_spec(recorded).encode()) > MAX_SPEC_BYTES:
        raise spec_too_large()


def check_header(prompts: tuple[Prompt, ...], image: bytes, door: Services) -> ImageHeader:
    """Refuse an image by its first bytes, and prompts that are not on it; gives what those bytes say."""
    header = read_header(image, door.settings.max_image_pixels)
    if header.size_wh is not None:
        check_prompts_on_image(prompts, header.size_wh)
    return header


def _store_image(spec: Spec, image: bytes, tenant: str, door: Services) -> str:
    return door.store.put_upload(tenant, image, check_header(spec.prompts, image, door).content_type)


def _record(job: NewJob, model: str, door: Services) -> tuple[str, bool]:
    creation = door.ledger.create(
        job,
        max_in_flight=door.settings.jobs_in_flight(job.tenant),
        idempotency_ttl_s=door.settings.idempotency_ttl_s,
        backlog=backlog_limit(model, job.queue, door),
    )
    match creation.outcome:
        case Created.KNOWN:
            pass
        case Created.CREATED:
            logger.info("job_created", job_id=creation.job_id, queue=job.queue, tenant=job.tenant)
        case refused:
            refuse(refused, creation.wait_s, job.tenant, door)
    return creation.job_id, creation.outcome is Created.KNOWN


def _look_up(job_id: str, job: NewJob, door: Services, address: str, *, known: bool) -> JobView:
    try:
        record = door.ledger.read(job_id)
        if record is not None:
            return whole_view(record, door, address)
    except QueueUnavailable:
        if known:
            raise
        logger.warning("record_not_read_back", job_id=job_id)
    if known:
        raise NotFound("job_not_found", "The job of this Idempotency-Key is forgotten by now. Use a new key.")
    # The job is recorded; that Redis went away since does not undo it.
    return _as_created(job_id, job).view(door.settings.model_name, address, attempts=())


def _as_created(job_id: str, job: NewJob) -> JobRecord:
    fields = {"id": job_id, "tenant": job.tenant, "queue": job.queue, "spec": job.spec_json, "status": Status.QUEUED}
    return JobRecord.from_fields({**fields, "created_ms": str(int(time.time() * 1000)), "attempt": "0", "fence": "0"})
