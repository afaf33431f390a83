"""Checks of what a job refers to, without fetching it: its image, earlier masks, URLs.

The worker, which fetches them, has the last word; it uses the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskfleet.api.services import Services
from maskfleet.jobs.addresses import AddressRefused, check_url
from maskfleet.jobs.errors import InvalidImage, InvalidPrompt, InvalidRequest, NotFound
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import AnySpec
from maskfleet.jobs.schema.spec import ImageSource, Output
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import allowed_object, upload_key


def check_addresses(spec: AnySpec, settings: ApiSettings) -> None:
    """Raise InvalidRequest (``url_not_allowed``) for a URL that is not allowed; no host name is resolved."""
    named = {"/image/url": spec.image.url, "/webhook/url": spec.webhook.url if spec.webhook else None}
    for pointer, url in named.items():
        if url is not None:
            check_address(pointer, url, settings)


def check_address(pointer: str, url: str, settings: ApiSettings) -> None:
    """Raise InvalidRequest for one URL as ``check_addresses`` does.  pointer: its field in the body."""
    try:
        check_url(url, settings.address_rules)
    except AddressRefused as error:
        raise InvalidRequest.at(pointer, error.code, error.detail) from error


def check_object(pointer: str, s3_uri: str, tenant: str, settings: ApiSettings) -> None:
    """Raise InvalidRequest for an object that the tenant's jobs may not name.  pointer: its field in the body."""
    try:
        allowed_object(s3_uri, tenant, settings)
    except InvalidRequest as error:
        raise error.locate(pointer) from error


def check_image_source(source: ImageSource, tenant: str, services: Services) -> None:
    """Raise InvalidRequest, NotFound or InvalidImage for a bucket that is not allowed, or an unusable upload."""
    if source.s3_uri is not None:
        check_object("/image/s3_uri", source.s3_uri, tenant, services.settings)
    if source.upload_id is not None:
        stored = services.store.head(upload_key(tenant, source.upload_id))
        if stored is None:
            raise NotFound("upload_not_found", "No upload has this id, or it was removed. PUT the image first.")
        if stored.size > services.settings.max_image_bytes:
            raise image_file_too_large(services.settings.max_image_bytes)
        if stored.size == 0:
            raise InvalidImage("image_empty", "The image file is empty. Was it uploaded completely?")


def check_mask_inputs(prompts: Sequence[Prompt], tenant: str, services: Services) -> None:
    """Raise InvalidRequest or InvalidPrompt for an earlier mask that cannot exist.

    A job whose record has expired or is another tenant's passes; then the worker looks for its masks.
    """
    seen: set[str] = set()
    for number, source in ((number, prompt.mask_input) for number, prompt in enumerate(prompts)):
        if source is None:
            continue
        if source.s3_uri is not None:
            check_object(f"/prompts/{number}/mask_input/s3_uri", source.s3_uri, tenant, services.settings)
        named = source.upload_id or source.job_id
        if named is None or named in seen:  # many prompts may name one job
            continue
        seen.add(named)
        if source.upload_id is not None:
            there = services.store.head(upload_key(tenant, source.upload_id)) is not None
        else:
            there = _may_have_logits(named, tenant, services)
        if not there:
            raise InvalidPrompt("mask_input_not_found", f"Prompt {number}: {named} has no mask to start from.")


def image_file_too_large(max_image_bytes: int) -> InvalidRequest:
    return InvalidRequest(
        "image_file_too_large", f"The image file is larger than the limit of {max_image_bytes:,} bytes.", status=413
    )


def _may_have_logits(job_id: str, tenant: str, services: Services) -> bool:
    record = services.ledger.read(job_id)
    if record is None or record.tenant != tenant or not record.status.ended:
        return True
    return record.status is Status.SUCCEEDED and Output.LOGITS in record.summary.outputs
