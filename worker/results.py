"""From masks to objects in the store, and the manifest that lists them."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Protocol

from maskfleet.jobs.schema.inline import InlineMasks, WhyNotInline
from maskfleet.jobs.schema.manifest import Manifest, SegmentedBy
from maskfleet.jobs.schema.record import ImageContent, ImageValues, JobRecord, ResultSummary, shown_spec
from maskfleet.jobs.storage import Store, attempt_prefix, manifest_key, result_prefix
from maskfleet.worker.earlier_result import earlier_result
from maskfleet.worker.embeddings.job_image import recorded
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.values import ValueRange
from maskfleet.worker.lease import Lease
from maskfleet.worker.output.artifacts import Segmented
from maskfleet.worker.stages import StageName, stage, timed_outputs
from maskfleet.worker.uploads import put_all


class KnownImage(Protocol):
    """What a manifest says of an image.  content: None where that was not kept."""

    @property
    def size_wh(self) -> tuple[int, int]: ...

    @property
    def values(self) -> ValueRange | None: ...

    @property
    def georeference(self) -> Georeference | None: ...

    @property
    def content(self) -> ImageContent | None: ...


def write_result(
    record: JobRecord,
    photo: KnownImage,
    segmented: Segmented,
    store: Store,
    lease: Lease,
    *,
    model: str,
    fetch_s: float,
    uploads_at_once: int,
    segmented_by: SegmentedBy | None = None,
) -> ResultSummary:
    """Write the job's outputs to the attempt's own folder, side by side, and when all are there the manifest.

    The manifest is written once per job.  If an earlier attempt has written it, that attempt's result stands
    and no manifest lists this one's objects.  segmented_by: the job that made the masks, if it was another.
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
        georeference=recorded(photo.georeference) if photo.georeference else None,
        image=photo.content,
        masks=segmented.masks,
        files=files,
        inline=segmented.inline if isinstance(segmented.inline, InlineMasks) else None,
        inline_omitted=segmented.inline if isinstance(segmented.inline, WhyNotInline) else None,
        segmented_by=segmented_by,
        metrics=segmented.metrics.model_copy(update={"fetch_s": fetch_s, "write_s": time.monotonic() - started}),
    )
    # Indented, polygons would take a line for each number.
    body = manifest.model_dump_json(indent=None if manifest.inline else 2, exclude_none=True).encode()
    key = manifest_key(record.tenant, record.id)
    named = record.summary.image is not None
    summary = manifest.summary(result_prefix(record.tenant, record.id), key, image_named=named)
    with stage(StageName.UPLOAD):
        written = store.put_once(key, body, "application/json")
    if not written:
        return earlier_result(record, store) or summary
    return summary
