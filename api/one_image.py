"""What a token for one image may do where a route takes one: send jobs of that image, and see the jobs of that image.

They are all of the tenant's jobs of the same upload or address, by whichever name, whoever sent them.  A page that
holds such a token learns nothing of other images, not even which ids there are: their jobs are as if they did not
exist.
"""

from __future__ import annotations

from flask import request

from maskfleet.api.known_images import find_named
from maskfleet.api.request_body import MAX_SPEC_BYTES, Submission
from maskfleet.api.services import current_caller, current_services
from maskfleet.jobs.errors import Forbidden, InvalidPrompt, InvalidRequest
from maskfleet.jobs.schema.record import AnySpec, JobRecord
from maskfleet.jobs.schema.spec import ImageSource

#: Those that an image and its clicks need; ``everything`` takes a worker for minutes.
MODES = frozenset({"point", "box", "embed"})


def limit_body() -> None:
    """Refuse a body that holds more than a spec, before it is read: there may be no image in it."""
    if current_caller().image:
        request.max_content_length = min(MAX_SPEC_BYTES, request.max_content_length or MAX_SPEC_BYTES)


def check_submission(submission: Submission) -> None:
    """Raise Forbidden (``image_not_allowed``, ``token_not_allowed``), InvalidPrompt for a job that goes beyond it."""
    image, spec = current_caller().image, submission.spec
    if not image:
        return
    if submission.image is not None or _name_of(spec.image) != image:
        raise Forbidden(
            "image_not_allowed", f"This token is for jobs of the image {image} only; name it in the job's image."
        )
    if spec.mode not in MODES:
        raise Forbidden("token_not_allowed", f"A token for one image is for the modes {', '.join(sorted(MODES))}.")
    if spec.webhook is not None:
        raise Forbidden("token_not_allowed", "A token for one image cannot name a webhook. Leave it out.")
    _check_mask_inputs(spec)


def may_see(record: JobRecord) -> bool:
    """Return whether the caller may see a job of its tenant."""
    image = current_caller().image
    return not image or record.image == image


def own_idempotency_key(key: str) -> str:
    """Return the key to record: a page must not use up, or find out, those of its tenant's other programs."""
    image = current_caller().image
    return f"{image}:{key}" if image and key else key


def _name_of(source: ImageSource) -> str:
    """Return the name under which the job would be recorded; empty for an image that is not known."""
    try:
        return find_named(source, current_caller().tenant, current_services()).source.name
    except InvalidRequest:
        return ""  # as for an image that the token is not for: a page does not learn which ids there are


def _check_mask_inputs(spec: AnySpec) -> None:
    """Raise unless each earlier mask is of a job of the same image."""
    named = (prompt.mask_input for prompt in spec.prompts if prompt.mask_input is not None)
    for job_id in dict.fromkeys(source.job_id for source in named):  # many prompts may name one job
        if job_id is None:
            raise Forbidden(
                "token_not_allowed", "With a token for one image, a mask_input must name a job of that image."
            )
        record = current_services().ledger.read(job_id)
        if record is None or record.tenant != current_caller().tenant or not may_see(record):
            raise InvalidPrompt("mask_input_not_found", f"{job_id} is no job of this token's image.")
