"""What a job came to already: the manifest that an earlier attempt left in the store, in short."""

from __future__ import annotations

from maskfleet.jobs.errors import NotFound, StoreMisconfigured
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobRecord, ResultSummary
from maskfleet.jobs.storage import Store, manifest_key, result_prefix


def earlier_result(record: JobRecord, store: Store) -> ResultSummary | None:
    """Find the result of another attempt that wrote its manifest and died, or was fenced, before it could say so."""
    key = manifest_key(record.tenant, record.id)
    try:
        body = store.read(key)
    except (NotFound, StoreMisconfigured):  # without the right to list, S3 denies what does not exist
        return None
    manifest = Manifest.model_validate_json(body)
    named = record.summary.image is not None
    return manifest.summary(result_prefix(record.tenant, record.id), key, image_named=named)
