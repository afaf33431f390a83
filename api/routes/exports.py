"""An earlier job's masks in further formats, or filtered again: a job of its own, which needs no model."""

from __future__ import annotations

import json
from functools import partial

from flask import Blueprint, Response

from maskfleet.api.admission import admit_derived
from maskfleet.api.operation import Header, Operation, idempotency_key_header, operation
from maskfleet.api.request_body import read_idempotency_key, read_json
from maskfleet.api.request_context import origin
from maskfleet.api.routes.jobs import answer_when_ended
from maskfleet.api.routes.results import NO_RESULT, read_manifest
from maskfleet.api.services import Services, base_url, check_priority, current_services, tenant
from maskfleet.api.sources import check_address, check_image_source
from maskfleet.jobs.errors import Conflict, InvalidRequest, RecordUnreadable
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.manifest import CANDIDATES_FILE, Manifest
from maskfleet.jobs.schema.record import JobView, Spec
from maskfleet.jobs.schema.spec import (
    DerivedJob,
    EmbedJob,
    EverythingJob,
    ExportRequest,
    ImageSource,
    Output,
    RefilterRequest,
    is_signed,
    read_spec,
)

blueprint = Blueprint("exports", __name__)

_PROBLEMS = {
    400: ("malformed_json", "invalid_idempotency_key"),
    403: ("bucket_not_allowed",),
    404: (*NO_RESULT[404], "upload_not_found"),
    409: (*NO_RESULT[409], "masks_not_kept", "image_not_kept"),
    413: ("body_too_large", "spec_too_large", "image_file_too_large"),
    415: ("unsupported_media_type", "content_encoding_not_supported"),
    422: ("invalid_spec", "logits_not_exported", "url_not_allowed", "image_empty", "idempotency_key_reused"),
    429: ("too_many_jobs_in_flight", "over_quota", "too_many_bytes", "too_many_held"),
    503: (
        "store_unavailable",
        "store_misconfigured",
        "record_not_confirmed",
        "backlog_full",
        "ledger_version",
        "too_many_bytes",
        "too_many_held",
    ),
}
_HEADERS = (
    idempotency_key_header("job", "export-42"),
    Header("Prefer", "`wait=N` holds the response until the job ends, for at most N seconds.", "wait=30"),
)


@blueprint.post("/jobs/<job_id>/export")
@operation(
    Operation(
        summary="Write an earlier job's masks in further formats: a new job, which needs no model and no GPU.",
        scope=Scope.WRITE,
        description=(
            "The masks are read from what the earlier job wrote: `coco`, `masks_zip` or `png`, or `inline` as `rle`. "
            "An `overlay` needs the image as well, unchanged. With `Prefer: wait=N`, the response is held until the "
            "job ends: 200, with the ended job. 202: it has not ended yet."
        ),
        body=ExportRequest,
        responses={200: JobView, 202: JobView},
        problems=_PROBLEMS,
        headers=_HEADERS,
    )
)
def export_job(job_id: str) -> Response:
    key, services = read_idempotency_key(), current_services()
    manifest = read_manifest(job_id)
    asked = read_json(ExportRequest, "invalid_spec")
    _check_asked(asked)
    _check_masks(manifest)
    image = _named_image(earlier_spec(manifest), manifest, asked, services)
    job = asked.job(job_id, image, manifest.model)
    return answer_when_ended(partial(admit_derived, job, tenant(), key, services, base_url(), origin()))


@blueprint.post("/jobs/<job_id>/refilter")
@operation(
    Operation(
        summary="Filter an earlier job's candidates with other thresholds: a new job, which needs no model and no GPU.",
        scope=Scope.WRITE,
        description=(
            "For a job of mode `everything` with `keep_candidates`: the masks are exactly those of a full run with "
            "these thresholds; those left out are the earlier job's. An `overlay` needs the image as well, unchanged. "
            "With `Prefer: wait=N`, the response is held until the job ends: 200, with the ended job. 202: it has not "
            "ended yet."
        ),
        body=RefilterRequest,
        responses={200: JobView, 202: JobView},
        problems={
            **_PROBLEMS,
            409: (*NO_RESULT[409], "candidates_not_kept", "image_not_kept"),
            422: (*_PROBLEMS[422], "threshold_not_kept"),
        },
        headers=_HEADERS,
    )
)
def refilter_job(job_id: str) -> Response:
    key, services = read_idempotency_key(), current_services()
    manifest = read_manifest(job_id)
    asked = read_json(RefilterRequest, "invalid_spec")
    _check_asked(asked)
    spec = _spec_with_candidates(manifest)
    image = _named_image(spec, manifest, asked, services)
    job = asked.job(job_id, image, manifest.model, spec.params)
    return answer_when_ended(partial(admit_derived, job, tenant(), key, services, base_url(), origin()))


def _check_asked(asked: ExportRequest | RefilterRequest) -> None:
    check_priority(asked.priority)
    if Output.LOGITS in asked.outputs:
        raise InvalidRequest.at(
            f"/outputs/{asked.outputs.index(Output.LOGITS)}",
            "logits_not_exported",
            "Logits are made by the model alone. Send the job again as a new one, with logits among its outputs.",
        )


def _named_image(
    spec: Spec, manifest: Manifest, asked: ExportRequest | RefilterRequest, services: Services
) -> ImageSource:
    """Return the earlier job's image.  Raises if it is needed and cannot be there any more."""
    image = _image_of(spec, manifest)
    if Output.OVERLAY in asked.outputs:
        _check_image(image, manifest.job_id, services)
    return image


def _spec_with_candidates(manifest: Manifest) -> EverythingJob:
    """Return the spec of a result that has candidates.  Raises Conflict (``candidates_not_kept``)."""
    if any(file.name == CANDIDATES_FILE for file in manifest.files):
        spec = earlier_spec(manifest)
        if isinstance(spec, EverythingJob):
            return spec
    before = manifest.origin.job_id
    instead = (
        f" Filter those of {before}, which made its masks."
        if before != manifest.job_id
        else " Send the image as a new job of mode everything, with keep_candidates."
    )
    raise Conflict("candidates_not_kept", f"{manifest.job_id} kept no candidates.{instead}")


def earlier_spec(manifest: Manifest) -> Spec:
    """Return the spec that a result's masks were made by.  Raises Conflict (``masks_not_kept``), RecordUnreadable."""
    origin_of = manifest.origin
    if origin_of.spec is None:
        raise _not_kept(manifest.job_id, "a version of the service made it that did not keep what it was asked for")
    spec = read_spec(json.dumps(origin_of.spec))
    if isinstance(spec, EmbedJob | DerivedJob):
        raise RecordUnreadable("result")
    return spec


def _check_masks(manifest: Manifest) -> None:
    """Raise Conflict unless the masks can be read from the result."""
    if manifest.origin.mode == "embed":
        raise _not_kept(manifest.job_id, "it is of mode embed")
    if not manifest.keeps_masks:
        raise _not_kept(manifest.job_id, "it wrote neither coco, masks_zip nor png, nor the masks inline as rle")


def _not_kept(job_id: str, why: str) -> Conflict:
    return Conflict("masks_not_kept", f"{job_id} has no masks to export: {why}. Send the image as a new job.")


def _image_of(spec: Spec, manifest: Manifest) -> ImageSource:
    """Return the earlier job's image, pinned to its bytes if they are known."""
    known = manifest.image.sha256 if manifest.image else spec.image.sha256
    return spec.image.model_copy(update={"sha256": known, "file_name": manifest.file_name or spec.image.file_name})


def _check_image(image: ImageSource, job_id: str, services: Services) -> None:
    """Raise unless the image may still be there."""
    if image.url is not None:
        if is_signed(image.url):
            raise Conflict(
                "image_not_kept",
                f"The image of {job_id} was named by a signed URL, which is not kept, so that no overlay can be made. "
                "Leave overlay out.",
            )
        check_address("/outputs", image.url, services.settings)
    check_image_source(image, tenant(), services)
