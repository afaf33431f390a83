"""Uploads: an image goes straight to the object store, bypassing this service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Blueprint, Response

from maskfleet.api.admission import reserve_upload
from maskfleet.api.operation import Operation, operation
from maskfleet.api.request_body import read_json
from maskfleet.api.responses import json_response
from maskfleet.api.services import current_services, tenant
from maskfleet.api.sources import image_file_too_large
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.api import UploadRequest, UploadView

blueprint = Blueprint("uploads", __name__)


@blueprint.post("/uploads")
@operation(
    Operation(
        summary="Get a link to upload an image to; then pass its upload_id in a job.",
        scope=Scope.WRITE,
        body=UploadRequest,
        responses={201: UploadView},
        problems={
            400: ("malformed_json",),
            413: ("image_file_too_large", "body_too_large"),
            415: ("unsupported_media_type", "content_encoding_not_supported"),
            422: ("invalid_upload",),
            429: ("too_many_jobs_in_flight", "over_quota", "too_many_upload_bytes"),
            503: ("ledger_version",),
        },
    )
)
def make_upload() -> Response:
    settings = current_services().settings
    wanted = read_json(UploadRequest, "invalid_upload")
    if wanted.size > settings.max_image_bytes:
        raise image_file_too_large(settings.max_image_bytes)
    reserve_upload(tenant(), wanted.size, current_services())
    expires_at = datetime.now(UTC) + timedelta(seconds=settings.upload_ttl_s)
    upload = current_services().store.presign_upload(tenant(), wanted.content_type, wanted.size, settings.upload_ttl_s)
    shown = UploadView(upload_id=upload.upload_id, url=upload.url, headers=upload.headers, expires_at=expires_at)
    return json_response(shown, status=201)
