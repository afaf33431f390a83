"""What is known of an image that was decoded once, and an image that callers made known, as the API shows it."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import Field

from maskfleet.jobs.schema.record import Failure, ImageContent, ImageGeoreference, ImageValues, JobView
from maskfleet.jobs.schema.spec import ImageSource, image_id_of
from maskfleet.jobs.schema.wire import Sha256, Wire
from maskfleet.jobs.status import Status


class ImageFacts(Wire):
    """What a job needs to know of an image whose embedding is at hand, instead of its bytes."""

    sha256: Sha256 = Field(description="Of the file's bytes.")
    file_bytes: int = Field(ge=1)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    values: ImageValues | None = None
    georeference: ImageGeoreference | None = None
    georeference_read: bool = Field(False, description="Not so in the facts of a version that did not look for one.")
    etag: str = Field("", description="Of the object in a caller's bucket; another one means another image.")

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def content(self) -> ImageContent:
        return ImageContent(sha256=self.sha256, width=self.width, height=self.height)


def source_name(source: ImageSource) -> str | None:
    """Return a name under which an image's facts are kept; None for a source whose bytes must be fetched each time.

    An upload never changes; an object in a bucket does, with its tag.
    """
    if source.upload_id is not None:
        return f"upload:{source.upload_id}"
    return source.s3_uri


def content_name(sha256: str) -> str:
    """Return the name of an image by its bytes, whatever their source."""
    return f"sha256:{sha256}"


class ImageUrls(Wire):
    """Ready-made URLs for the next requests."""

    self: str
    job: str = Field(description="The job that encodes it, with its events, cancellation and webhooks.")


class ImageView(Wire):
    """An image that jobs may name by its id."""

    image_id: str = Field(description="For a job's `image.image_id`, also before the image is encoded.")
    job_id: str = Field(description="Of the job that encodes it.")
    status: Status = Field(description="Of that job: `succeeded` once later jobs need not encode the image.")
    model: str
    created_at: datetime
    expires_at: datetime | None = Field(None, description="When the id is forgotten; null until the image is encoded.")
    width: int | None = Field(None, description="In pixels, as a viewer shows it; null until it is decoded.")
    height: int | None = None
    sha256: str | None = Field(None, description="The SHA-256 of the file's bytes, in hex.")
    error: Failure | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    urls: ImageUrls

    @classmethod
    def of(cls, job: JobView, base_url: str, retention_s: int) -> ImageView:
        """Return the view of an image, from that of the job that encodes it.

        base_url: the API's URL, without a trailing slash.  retention_s: how long the record outlives the job.
        """
        image_id = image_id_of(job.id)
        content = job.result.image if job.result else None
        return cls(
            image_id=image_id,
            job_id=job.id,
            status=job.status,
            model=job.model,
            created_at=job.created_at,
            expires_at=job.ended_at + timedelta(seconds=retention_s) if job.ended_at else None,
            width=content.width if content else None,
            height=content.height if content else None,
            sha256=content.sha256 if content else None,
            error=job.error,
            metadata=job.metadata,
            urls=ImageUrls(self=f"{base_url}/v1/images/{image_id}", job=job.urls.self),
        )

    @property
    def ended(self) -> bool:
        """Whether its job has ended, also in a state that this version does not know."""
        return self.expires_at is not None
