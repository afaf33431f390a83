"""Admission of a batch from a prefix or a manifest: it is recorded at once, and couriers create its jobs.

What can be checked without reading the whole source is rejected here: where it is, that there is something, the spec.
"""

from __future__ import annotations

import hashlib

from maskfleet.api.admission import Admitted, batch_view, find_batch, record, shown, with_model
from maskfleet.api.request_body import MAX_SPEC_BYTES, UNSTORED, spec_too_large
from maskfleet.api.services import Services
from maskfleet.api.sources import check_address, check_mask_inputs
from maskfleet.jobs.errors import InvalidRequest, NotFound
from maskfleet.jobs.ledger.outcomes import NewBatch, NewJobs, Origin
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.batch import BatchSourceView, BatchView
from maskfleet.jobs.schema.batch_spec import Batch, BatchPlan, BatchSource, job_of
from maskfleet.jobs.schema.spec import ImageSource, Output, dump_spec
from maskfleet.jobs.storage import ObjectDenied, StoredObject, allowed_object, allowed_prefix


def admit_batch_source(
    spec: Batch, tenant: str, idempotency_key: str, services: Services, address: str, origin: Origin
) -> Admitted[BatchView]:
    """Check a batch's source and spec, and record it without jobs."""
    spec, source = with_model(spec, services), spec.source
    if source is None:
        raise ValueError("This batch names its images one by one.")
    job = dump_spec(job_of(spec, ImageSource(upload_id=UNSTORED)))
    if len(job.encode()) > MAX_SPEC_BYTES:
        raise spec_too_large()
    if spec.webhook is not None:
        check_address("/webhook/url", spec.webhook.url, services.settings)
    check_mask_inputs(spec.prompts, tenant, services)
    manifest = _check_source(source, tenant, services)
    settings, default = services.settings, services.settings.default_webhook(tenant)
    queue = queue_name(str(spec.model), spec.priority)
    plan = BatchPlan(
        source=source,
        spec=job,
        queue=queue,
        bucket=services.store.bucket,
        start_deadline_s=spec.start_deadline_s,
        max_in_flight=settings.jobs_in_flight(tenant),
        max_bytes=settings.record_bytes(tenant),
        coco=Output.COCO in spec.outputs,
        geojson=Output.GEOJSON in spec.outputs,
        etag=manifest.etag if manifest else "",
        size=manifest.size if manifest else 0,
    )
    seen = BatchSourceView(
        prefix=source.prefix, pattern=source.pattern if source.prefix else None, manifest=source.manifest
    )
    batch = NewBatch(
        completed_url=spec.webhook.completed_url if spec.webhook else default.url if default else "",
        metadata=spec.metadata,
        source=seen.model_dump_json(exclude_none=True),
        plan=plan.model_dump_json(exclude_none=True),
        most_open=settings.max_open_batches,
    )
    digest = hashlib.sha256(b"batch source\n" + spec.model_dump_json().encode()).hexdigest()
    jobs = NewJobs(
        tenant=tenant,
        queue=queue,
        specs_json=(),
        start_deadline_s=spec.start_deadline_s,
        idempotency_key=idempotency_key,
        body_digest=digest if idempotency_key else "",
        batch=batch,
        origin=origin,
    )
    creation = record(jobs, str(spec.model), services, None)

    def read() -> BatchView:
        return batch_view(find_batch(creation.id, tenant, services), services, address)

    return shown(creation, read, read, batch_id=creation.id)


def _check_source(source: BatchSource, tenant: str, services: Services) -> StoredObject | None:
    """Raise InvalidRequest for a source that is not allowed, or holds nothing; return the manifest, if it is one."""
    pointer = "/source/prefix" if source.prefix is not None else "/source/manifest"
    try:
        if source.prefix is not None:
            bucket, prefix = allowed_prefix(source.prefix, tenant, services.settings)
            if not services.store.listed_after(bucket, prefix, "", 1)[0]:
                raise InvalidRequest("source_not_found", "There is no object whose URI begins like this.")
            return None
        bucket, key = allowed_object(source.manifest or "", tenant, services.settings)
        manifest = services.store.head(key, bucket=bucket)
        if manifest is None:
            raise InvalidRequest("source_not_found", "There is no such object. Write the manifest first.")
    except ObjectDenied as error:
        detail = "The object store denies this service access to it."
        raise InvalidRequest("source_forbidden", detail).locate(pointer) from error
    except NotFound as error:
        raise InvalidRequest("source_not_found", "The object store has no such bucket.").locate(pointer) from error
    except InvalidRequest as error:
        raise error.locate(pointer) from error
    return manifest
