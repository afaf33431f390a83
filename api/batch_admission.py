"""A batch at the door: each image checked, those that came with it stored, all recorded in one step and queued."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from api.admission import backlog_limit, check_header, publish, refuse, with_model
from api.intake import MAX_SPEC_BYTES, UNSTORED, spec_too_large
from api.services import Services
from api.sources import check_address, check_image_source, check_mask_inputs, image_file_too_large
from jobs.batch import BatchCounts, BatchRecord, BatchView
from jobs.batch_spec import Batch, job_of
from jobs.batches import BatchCreation, NewBatch
from jobs.errors import CallerError, FieldFault, InvalidRequest, NotFound, QueueUnavailable
from jobs.logs import get_logger
from jobs.queue import queue_name
from jobs.spec import ImageSource, dump_spec
from jobs.transitions import Created

#: All specs of a batch together; each of its jobs keeps its own in Redis, which holds small things only.
MAX_BATCH_BYTES = 8 * 2**20
#: Images that are looked up or stored at once; the store's client has 32 connections, for all requests.
AT_ONCE = 8

Made = TypeVar("Made")

logger = get_logger()


@dataclass(frozen=True, slots=True)
class AdmittedBatch:
    """A batch that is recorded.  known: it already was, under the same idempotency key."""

    view: BatchView
    known: bool


def admit_batch(spec: Batch, tenant: str, idempotency_key: str, door: Services, address: str) -> AdmittedBatch:
    """Check a batch, store the images that came with it, record it and put its jobs into the queue.

    All or nothing: whatever is wrong with one image is said with its place, and then nothing was recorded.
    """
    spec = with_model(spec, door)
    _check_sizes(spec, door)
    _check_addresses(spec, door)
    check_mask_inputs(spec.prompts, tenant, door)
    _for_each(spec.images, lambda image: _check_image(image, spec, tenant, door))
    images = _for_each(spec.images, lambda image: _stored(image, tenant, door))
    specs_json = [dump_spec(job_of(spec, image)) for image in images]
    default = door.settings.default_webhook(tenant)
    batch = NewBatch(
        tenant=tenant,
        queue=queue_name(str(spec.model), spec.priority),
        specs_json=specs_json,
        start_deadline_s=spec.start_deadline_s,
        webhook=spec.webhook.of_jobs if spec.webhook else None,
        completed_url=spec.webhook.completed_url if spec.webhook else default.url if default else "",
        metadata=spec.metadata,
        idempotency_key=idempotency_key,
        body_digest=_digest(spec, specs_json) if idempotency_key else "",
    )
    creation = door.batches.create(
        batch,
        max_in_flight=door.settings.jobs_in_flight(tenant),
        idempotency_ttl_s=door.settings.idempotency_ttl_s,
        backlog=backlog_limit(str(spec.model), batch.queue, door),
    )
    match creation.outcome:
        case Created.KNOWN:
            return AdmittedBatch(batch_view(find_batch(creation.batch_id, tenant, door), door, address), known=True)
        case Created.CREATED:
            logger.info("batch_created", batch_id=creation.batch_id, jobs=len(specs_json), tenant=tenant)
        case refused:
            refuse(refused, creation.wait_s, tenant, door)
    for job_id in creation.job_ids:
        if not publish(job_id, batch.queue, door):
            break  # the rest is left to the courier as well: a Redis that hangs, hangs for each
    return AdmittedBatch(_look_up(creation, batch, door, address), known=False)


def find_batch(batch_id: str, tenant: str, door: Services) -> BatchRecord:
    """Give the tenant's batch.  Another tenant's is exactly as unknown as one that never was."""
    record = door.batches.read(batch_id) if re.fullmatch(r"batch_[0-9a-f]{32}", batch_id) else None
    if record is None or record.tenant != tenant:
        raise NotFound("batch_not_found", "You have no batch with this id, or it ended long ago and is forgotten.")
    return record


def batch_view(record: BatchRecord, door: Services, address: str) -> BatchView:
    """Show a batch with the ids of its jobs."""
    return record.view(address, door.batches.job_ids(record.id))


def _check_sizes(spec: Batch, door: Services) -> None:
    most = door.settings.max_batch_images
    if len(spec.images) > most:
        fault = FieldFault("/images", "too_many_images", f"A batch has at most {most:,} images; send several batches.")
        raise InvalidRequest(fault.code, f"{fault.pointer}: {fault.detail}", faults=(fault,))
    shared = len(dump_spec(job_of(spec, ImageSource(upload_id=UNSTORED))).encode())
    named = [len(image.model_dump_json(exclude={"base64"}).encode()) for image in spec.images]
    if shared + max(named) > MAX_SPEC_BYTES:
        raise spec_too_large()
    if shared * len(named) + sum(named) > MAX_BATCH_BYTES:
        raise InvalidRequest(
            "batch_too_large",
            f"The jobs of a batch are, without their images, at most {MAX_BATCH_BYTES // 2**20} MiB together. "
            "Split it, or give each job fewer prompts.",
            status=413,
        )


def _check_addresses(spec: Batch, door: Services) -> None:
    if spec.webhook is not None:
        check_address("/webhook/url", spec.webhook.url, door.settings)
    for number, image in enumerate(spec.images):
        if image.url is not None:
            check_address(f"/images/{number}/url", image.url, door.settings)


def _check_image(image: ImageSource, spec: Batch, tenant: str, door: Services) -> None:
    if image.base64 is None:
        check_image_source(image, tenant, door)
        return
    data = base64.b64decode(image.base64)
    if len(data) > door.settings.max_image_bytes:
        raise image_file_too_large(door.settings.max_image_bytes)
    check_header(spec.prompts, data, door)


def _stored(image: ImageSource, tenant: str, door: Services) -> ImageSource:
    """Store an image that came with the request; give its source."""
    if image.base64 is None:
        return image
    data = base64.b64decode(image.base64)
    content_type = check_header((), data, door).content_type
    return ImageSource(upload_id=door.store.put_upload(tenant, data, content_type))


def _for_each(images: Iterable[ImageSource], do: Callable[[ImageSource], Made]) -> list[Made]:
    """Do something with each image, some at once; what is wrong with one says which it is, and ends the rest."""

    def do_one(numbered: tuple[int, ImageSource]) -> Made:
        number, image = numbered
        try:
            return do(image)
        except CallerError as error:
            raise error.locate(f"/images/{number}") from error

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="batch") as pool:
        return list(pool.map(do_one, enumerate(images)))


def _digest(spec: Batch, specs_json: list[str]) -> str:
    """Tell bodies apart.  An inline image is in its job's spec by its upload id, which is derived from its bytes."""
    told = spec.webhook.model_dump_json() if spec.webhook else ""
    return hashlib.sha256("\n".join(["batch", told, *specs_json]).encode()).hexdigest()


def _look_up(creation: BatchCreation, batch: NewBatch, door: Services, address: str) -> BatchView:
    try:
        record = door.batches.read(creation.batch_id)
    except QueueUnavailable:
        logger.warning("record_not_read_back", batch_id=creation.batch_id)
        record = None
    # The batch is recorded; that Redis went away since does not undo it.
    return (record or _as_created(creation, batch)).view(address, creation.job_ids)


def _as_created(creation: BatchCreation, batch: NewBatch) -> BatchRecord:
    jobs = len(creation.job_ids)
    return BatchRecord(
        id=creation.batch_id,
        tenant=batch.tenant,
        created_ms=int(time.time() * 1000),
        ended_ms=None,
        ends=0,
        counts=BatchCounts(queued=jobs, processing=0, succeeded=0, failed=0, canceled=0, expired=0),
        metadata=dict(batch.metadata),
    )
