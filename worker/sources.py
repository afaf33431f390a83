"""Fetch a job's image from its source, and the earlier masks that its prompts name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import ProtocolError

from maskfleet.jobs.addresses import AddressRefused
from maskfleet.jobs.errors import InvalidImage, InvalidPrompt, NodeFault, NotFound, SourceUnavailable, SourceUnreachable
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.prompts import MaskInput, Prompt
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.schema.wire import key_fault
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.storage import (
    FetchedObject,
    ObjectDenied,
    Store,
    allowed_object,
    manifest_key,
    result_prefix,
    upload_key,
)
from maskfleet.jobs.tracing import Kind, span
from maskfleet.worker.egress import MAX_REDIRECTS
from maskfleet.worker.sam.mask_input import LOGITS_FOLDER, MAX_FILE_BYTES, read_logits
from maskfleet.worker.stages import StageName, stage

if TYPE_CHECKING:
    from maskfleet.worker.sam.prompts import MaskInputs

#: Bytes read at a time: a file over the limit is abandoned at most this far beyond it.
_CHUNK = 1 << 20


def fetch_image(
    source: ImageSource, tenant: str, store: Store, egress: requests.Session, settings: WorkerSettings
) -> FetchedObject:
    """Fetch the image's bytes, at most ``settings.max_image_bytes``.

    Raises InvalidImage if it cannot be fetched, SourceUnavailable or StoreUnavailable if a retry may help, NodeFault if
    another node may.
    """
    if source.url is not None:
        fetched = FetchedObject(_fetch_url(source.url, egress, settings), "")
    elif source.s3_uri is not None:
        bucket, key = allowed_object(source.s3_uri, tenant, settings)
        fetched = _read_object(store, bucket, key, settings)
    elif source.upload_id is not None:
        fetched = _read_upload(store, upload_key(tenant, source.upload_id), settings)
    else:
        raise InvalidImage("image_not_stored", "The job's record names no image source.")
    if len(fetched.data) > settings.max_image_bytes:
        raise _too_many_bytes(settings)
    return fetched


def image_etag(source: ImageSource, tenant: str, store: Store, settings: WorkerSettings) -> str:
    """Return the tag of an object in a caller's bucket now; empty for another source, and if there is no object.

    Raises InvalidRequest for a bucket that is not allowed, StoreUnavailable.
    """
    if source.s3_uri is None:
        return ""
    bucket, key = allowed_object(source.s3_uri, tenant, settings)
    found = store.head(key, bucket=bucket)
    return found.etag if found else ""


def fetch_mask_inputs(prompts: Sequence[Prompt], tenant: str, store: Store, settings: WorkerSettings) -> MaskInputs:
    """Fetch the earlier masks that prompts name, keyed by the index of the prompt.

    Raises InvalidPrompt (``mask_input_not_found``, ``mask_input_forbidden``, ``invalid_mask_input``), InvalidRequest
    for a bucket that is not allowed, StoreUnavailable, NodeFault.
    """
    named = {index: prompt.mask_input for index, prompt in enumerate(prompts) if prompt.mask_input is not None}
    if not named:
        return {}
    with stage(StageName.FETCH):
        return {
            index: read_logits(_read_mask(source, index, tenant, store, settings), index)
            for index, source in named.items()
        }


def _read_mask(source: MaskInput, prompt: int, tenant: str, store: Store, settings: WorkerSettings) -> bytes:
    try:
        if source.s3_uri is not None:
            bucket, key = allowed_object(source.s3_uri, tenant, settings)
            return store.read(key, bucket=bucket, max_bytes=MAX_FILE_BYTES)
        if source.upload_id is not None:
            return _read_uploaded_mask(store, upload_key(tenant, source.upload_id), prompt)
        body = store.read(manifest_key(tenant, source.job_id or ""))
        of_masks = [
            file.key for file in Manifest.model_validate_json(body).files if file.name.startswith(LOGITS_FOLDER)
        ]
        folder = f"{result_prefix(tenant, source.job_id or '')}/"
        if any(not key.startswith(folder) or key_fault(key) for key in of_masks):
            raise NotFound("object_not_found", "The manifest names objects outside the job's folder.")
        if source.mask is not None and source.mask < len(of_masks):
            return store.read(of_masks[source.mask], max_bytes=MAX_FILE_BYTES)
    except ObjectDenied as error:
        raise InvalidPrompt(
            "mask_input_forbidden", f"Prompt {prompt}: the store denies this service access to the mask_input."
        ) from error
    except NotFound as error:
        raise InvalidPrompt(
            "mask_input_not_found", f"Prompt {prompt}: its mask_input was not found in the store."
        ) from error
    raise InvalidPrompt(
        "mask_input_not_found",
        f"Prompt {prompt}: the job {source.job_id} wrote logits for {len(of_masks)} masks, but not for mask "
        f"{source.mask}. Add logits to that job's outputs.",
    )


def _read_uploaded_mask(store: Store, key: str, prompt: int) -> bytes:
    try:
        return store.read(key, max_bytes=MAX_FILE_BYTES)
    except NotFound as error:  # as in _read_upload
        missing = InvalidPrompt(
            "mask_input_not_found", f"Prompt {prompt}: its mask_input is no longer in the store. Upload it again."
        )
        raise NodeFault(missing.code, missing.detail, verdict=missing) from error


def _read_object(store: Store, bucket: str, key: str, settings: WorkerSettings) -> FetchedObject:
    try:
        return store.fetch(key, bucket=bucket, max_bytes=settings.max_image_bytes)
    except ObjectDenied as error:
        raise InvalidImage("image_forbidden", "The store denies this service access to the image.") from error
    except NotFound as error:
        raise InvalidImage("image_not_found", "The image was not found in the store.") from error


def _read_upload(store: Store, key: str, settings: WorkerSettings) -> FetchedObject:
    try:
        return store.fetch(key, max_bytes=settings.max_image_bytes)
    except NotFound as error:
        # The API saw it when it accepted the job: this node may look in the wrong place.
        missing = InvalidImage("image_not_found", "The uploaded image is no longer in the store. Upload it again.")
        raise NodeFault(missing.code, missing.detail, verdict=missing) from error


def _fetch_url(url: str, egress: requests.Session, settings: WorkerSettings) -> bytes:
    deadline = time.monotonic() + settings.fetch_timeout_s
    data = bytearray()
    # The host alone: the rest may be signed.
    request = span("GET", {"server.address": urlsplit(url).hostname or ""}, kind=Kind.CLIENT)
    try:
        with request, _follow(url, egress, deadline) as response:
            request.note({"http.response.status_code": response.status_code})
            _check_status(response)
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                if len(data) > settings.max_image_bytes:
                    raise _too_many_bytes(settings)
            expected = response.headers.get("Content-Length", "")
            if expected.isdigit() and "Content-Encoding" not in response.headers and len(data) < int(expected):
                raise SourceUnavailable("The image's host closed the connection before the end of the file.")
    except AddressRefused as error:
        raise InvalidImage(error.code, f"The image URL is not allowed: {error.detail}") from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise InvalidImage("invalid_url", "The image URL is invalid.") from error
    except requests.RequestException as error:
        raise SourceUnavailable("The image's host did not respond properly or in time.") from error
    return bytes(data)


def _follow(url: str, egress: requests.Session, deadline: float) -> requests.Response:
    """Return a URL's response, following a few redirects; the session checks each of them like the first URL."""
    for _ in range(MAX_REDIRECTS + 1):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise requests.Timeout
        try:
            response = egress.get(url, stream=True, timeout=left_s)
        except (requests.ConnectionError, requests.Timeout) as error:
            if _responded(error):
                raise
            raise SourceUnreachable(urlsplit(url).hostname or "") from error
        if not response.is_redirect:
            return response
        response.close()  # without reading its body, which may be of any length
        url = urljoin(url, response.headers["Location"])
    raise InvalidImage("url_redirects", "The image URL redirects too many times.")


def _responded(error: requests.RequestException) -> bool:
    """Return whether something accepted the connection, and what it sent is no HTTP response."""
    cause = error.args[0] if error.args else None
    return isinstance(cause, ProtocolError) and any(isinstance(part, HTTPException) for part in cause.args)


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status in (404, 410):
        raise InvalidImage("image_not_found", f"The image's host responded {status}.")
    if status in (401, 403):
        raise InvalidImage("image_forbidden", f"The image's host responded {status}; use a link that needs no login.")
    if status == 429 or status >= 500:
        raise SourceUnavailable(f"The image's host responded {status}.")
    if status != 200:
        raise InvalidImage("image_not_found", f"The image's host responded {status} instead of sending the image.")


def _too_many_bytes(settings: WorkerSettings) -> InvalidImage:
    return InvalidImage(
        "image_file_too_large", f"The image file is larger than {settings.max_image_bytes / 2**20:.0f} MiB."
    )
