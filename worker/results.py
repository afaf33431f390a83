"""From masks to objects in the store, and the manifest that lists them."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime

from maskfleet.jobs.schema.inline import InlineMasks, WhyNotInline
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import ImageValues, JobRecord, ResultSummary, shown_spec
from maskfleet.jobs.storage import Store, attempt_prefix, manifest_key, result_prefix
from maskfleet.worker.earlier_result import earlier_result
from maskfleet.worker.embeddings.job_image import JobImage
from maskfleet.worker.lease import Lease
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.stages import StageName, stage, timed_outputs
from maskfleet.worker.uploads import put_all


def write_result(
    record: JobRecord,
    photo: JobImage,
    segmented: Segmented,
    store: Store,
    lease: Lease,
    *,
    model: str,
    fetch_s: float,
    uploads_at_once: int,
) -> ResultSummary:
    """Write the job's outputs to the attempt's own folder, side by side, and when all are there the manifest.

    The manifest is written once per job.  If an earlier attempt has written it, that attempt's result stands
    and no manifest lists this one's objects.
    """
    started = time.monotonic()
    prefix = attempt_prefix(record.tenant, record.id, record.attempt, record.fence, record.token)
    files = put_all(timed_outputs(segmented.artifacts), prefix, store, lease.check, at_once=uploads_at_once)
    lease.check()
    width, height = photo.size_wh
    manifest = Manifest(
        job_id=record.id,
        attempt=record.attempt,
        mode=record.spec.mode,
        model=model,
        source=record.spec.image.shown,
        file_name=record.spec.image.shown_file_name,
        spec=shown_spec(record.spec_json),
        created_at=datetime.now(UTC),
        image_width=width,
        image_height=height,
        image_values=ImageValues(**asdict(photo.values)) if photo.values else None,
        georeference=photo.facts.georeference,
        image=photo.content if record.summary.image else None,
        masks=segmented.masks,
        files=files,
        inline=segmented.inline if isinstance(segmented.inline, InlineMasks) else None,
        inline_omitted=segmented.inline if isinstance(segmented.inline, WhyNotInline) else None,
        metrics=segmented.metrics.model_copy(update={"fetch_s": fetch_s, "write_s": time.monotonic() - started}),
    )
    # Indented, polygons would take a line for each number.
    body = manifest.model_dump_json(indent=None if manifest.inline else 2, exclude_none=True).encode()
    key = manifest_key(record.tenant, record.id)
    summary = manifest.summary(result_prefix(record.tenant, record.id), key)
    with stage(StageName.UPLOAD):
        written = store.put_once(key, body, "application/json")
    if not written:
        return earlier_result(record, store) or summary
    return summary
