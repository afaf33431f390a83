"""Images that a job names by an earlier job: with ``image_id``, or by leaving its own image out."""

from __future__ import annotations

from dataclasses import dataclass

from maskfleet.api.services import Services
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import ImageContent, JobRecord
from maskfleet.jobs.schema.spec import ImageSource, job_id_of
from maskfleet.jobs.status import Status


@dataclass(frozen=True, slots=True)
class NamedImage:
    """A job's image.  source: what a worker reads.  content: as an earlier job found it; None if that is not known."""

    source: ImageSource
    content: ImageContent | None = None

    def check_prompts(self, prompts: tuple[Prompt, ...]) -> None:
        """Raise InvalidPrompt for prompts outside an image whose size is known."""
        if self.content is not None:
            fit_prompts(prompts, (self.content.width, self.content.height))


def find_named(source: ImageSource, tenant: str, services: Services) -> NamedImage:
    """Return the image that an ``image_id`` stands for, pinned to its bytes if they are known; any other as it is.

    Raises InvalidRequest (``image_not_known``).
    """
    if source.image_id is None:
        return NamedImage(source)
    record = services.ledger.read(job_id_of(source.image_id))
    if record is None or record.tenant != tenant:
        raise _not_known(source.image_id, "You have no image with this id, or its record has expired.")
    kept = record.summary.source
    if kept is None:
        raise _not_known(source.image_id, f"The image of {record.id} was not kept: it has no logits, or is of a batch.")
    if record.status.ended and record.status is not Status.SUCCEEDED:
        raise _not_known(source.image_id, _why_not(record))
    content = record.result.image if record.result else None
    pinned = source.sha256 or kept.sha256 or (content.sha256 if content else None)
    named = {"sha256": pinned, "file_name": source.file_name or kept.file_name}
    return NamedImage(kept.model_copy(update=named), content)


def _why_not(record: JobRecord) -> str:
    because = f" with {record.error.code}: {record.error.detail}" if record.error else "."
    return f"Its job {record.id} ended as {record.status}{because}"


def _not_known(image_id: str, why: str) -> InvalidRequest:
    return InvalidRequest.at(
        "/image/image_id",
        "image_not_known",
        f"{image_id} is not known. {why} Send the image to POST /v1/images again, or name it by its source.",
    )
