"""A batch as the ledger records it, with the number of its jobs in each state, and as callers see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import Field

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.open_enum import OpenEnum
from maskfleet.jobs.schema.wire import Wire, utc_time
from maskfleet.jobs.status import ENDED, Status


class BatchStatus(OpenEnum):
    """The state of a batch.  Retrying a job of a completed batch returns it to ``processing``."""

    PROCESSING = "processing"
    COMPLETED = "completed"


class BatchEnds(Wire):
    """How many jobs of a batch ended in each state."""

    succeeded: int
    failed: int
    canceled: int
    expired: int


class _Open(Wire):
    queued: int
    processing: int


class BatchCounts(BatchEnds, _Open):
    """How many jobs of a batch are in each state."""


class Expansion(OpenEnum):
    """Whether the images of a batch's source were all found and became jobs."""

    OPEN = "open"
    DONE = "done"
    CANCELED = "canceled"
    FAILED = "failed"


class BatchSourceView(Wire):
    """Where a batch's images come from."""

    prefix: str | None = Field(None, exclude_if=lambda text: text is None)
    pattern: str | None = Field(None, exclude_if=lambda text: text is None)
    manifest: str | None = Field(None, exclude_if=lambda text: text is None)


class BatchError(Wire):
    """Why not all images of a batch's source became jobs."""

    code: str
    detail: str


class ExpansionView(Wire):
    """How far a batch's source has been read.  Jobs are created as earlier ones end."""

    state: Expansion = Field(description="`open` while there may be more images; `failed` if the rest cannot be read.")
    listed: int = Field(description="Images, or lines of the manifest, found so far.")
    found: int | None = Field(
        None,
        description="How many there are in all. Those of a prefix are counted ahead of the jobs, a thousand a second; "
        "null until that is done, and of a manifest until its end.",
    )
    expanded: int = Field(description="Those that became jobs.")
    rejected: int = Field(description="Those that could not; they count as failed, and are listed with the failures.")
    error: BatchError | None = None


class BatchFile(Wire):
    """One object made of all the results of a batch."""

    name: str = Field(description="As in `GET /v1/batches/{id}/files/{name}`.", examples=["coco.json"])
    size: int = Field(description="Bytes.")
    content_type: str
    url: str = ""


class StoredBatchFile(BatchFile):
    """The same, as the record has it."""

    key: str


class BatchFailure(Wire):
    """An image of a batch that has no result."""

    number: int | None = Field(None, description="Its place in the source, or among `images`, counted from 1.")
    status: str = Field(description="`failed`, `canceled` or `expired` of its job; `rejected` if it became none.")
    job_id: str | None = None
    source: str | None = Field(None, description="The image, as in the job.")
    file_name: str | None = None
    code: str | None = Field(None, description="Why, machine-readable.")
    detail: str | None = None


class BatchFailures(Wire):
    """Some of the failures of a batch."""

    failures: tuple[BatchFailure, ...]
    next: str | None = Field(None, description="The URL of the next page; null on the last.")
    next_cursor: str | None = None


class BatchUrls(Wire):
    """Ready-made URLs for the next requests."""

    self: str
    deliveries: str
    failures: str = ""
    cancel: str = ""
    coco: str | None = Field(None, description="The masks of all images as one COCO dataset, once it is made.")


class BatchView(Wire):
    """A batch as the API shows it."""

    id: str
    status: BatchStatus = Field(description="`completed` when every job has ended, successfully or not.")
    created_at: datetime
    ended_at: datetime | None = Field(None, description="When the last job ended.")
    total: int = Field(description="Jobs, one for each image. Jobs deleted later still count.")
    done: int = Field(description="Jobs that have ended, successfully or not.")
    counts: BatchCounts
    metadata: dict[str, str] = Field(default_factory=dict)
    source: BatchSourceView | None = Field(
        None,
        exclude_if=lambda source: source is None,
        description="Of a batch that was made from a prefix or a manifest.",
    )
    expansion: ExpansionView | None = Field(None, exclude_if=lambda view: view is None, description="Likewise.")
    files: tuple[BatchFile, ...] = Field(
        (), exclude_if=lambda files: not files, description="Likewise, once it is completed."
    )
    job_ids: tuple[str, ...] = Field(
        description="In the order of the images. Each is a job like any other. Of a batch from a prefix or a manifest: "
        "those that have not ended."
    )
    request_id: str | None = Field(
        None,
        exclude_if=lambda request_id: request_id is None,
        description="The `X-Request-Id` of the request that created it, and all of its jobs.",
    )
    urls: BatchUrls


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as the ledger holds it.  Times are Redis' clock, in milliseconds since the epoch.

    ends: how often it was completed; retrying a job afterwards makes it complete once more.
    """

    id: str
    tenant: str
    created_ms: int
    ended_ms: int | None
    ends: int
    counts: BatchCounts
    metadata: dict[str, str]
    #: As in a job's record.
    request_id: str = ""
    traceparent: str = ""
    #: Of one that couriers expand: what is shown of its source; see the fields of the record in docs/ledger.md.
    source: BatchSourceView | None = None
    plan: str = ""
    expansion: Expansion | None = None
    cursor: str = ""
    listed: int = 0
    found: int | None = None
    rejected: int = 0
    annotations: int = 0
    collected_ms: int = 0
    error: BatchError | None = None
    files: tuple[StoredBatchFile, ...] = ()
    canceled: bool = False
    deleting: bool = False

    @classmethod
    def from_fields(cls, batch_id: str, fields: Mapping[str, str]) -> Self:
        """Read the record's Redis hash.  Raises RecordUnreadable."""
        try:
            return cls._from_fields(batch_id, fields)
        except (KeyError, ValueError) as error:
            raise RecordUnreadable("batch") from error

    @classmethod
    def _from_fields(cls, batch_id: str, fields: Mapping[str, str]) -> Self:
        return cls(
            id=batch_id,
            tenant=fields["tenant"],
            created_ms=int(fields["created_ms"]),
            ended_ms=int(fields["ended_ms"]) if "ended_ms" in fields else None,
            ends=int(fields["ends"]),
            counts=BatchCounts(**{status: int(fields[status]) for status in Status}),
            metadata=json.loads(fields["metadata"]),
            request_id=fields.get("request_id", ""),
            traceparent=fields.get("traceparent", ""),
            source=BatchSourceView.model_validate_json(fields["source"]) if "source" in fields else None,
            plan=fields.get("plan", ""),
            expansion=Expansion(fields["expansion"]) if "expansion" in fields else None,
            cursor=fields.get("cursor", ""),
            listed=int(fields.get("listed", 0)),
            found=int(fields["found"]) if "found" in fields else None,
            rejected=int(fields.get("rejected", 0)),
            annotations=int(fields.get("annotations", 0)),
            collected_ms=int(fields.get("collected_ms", 0)),
            error=BatchError(code=fields["error_code"], detail=fields["error_detail"])
            if "error_code" in fields
            else None,
            files=tuple(StoredBatchFile.model_validate(file) for file in json.loads(fields.get("files", "[]"))),
            canceled="cancel" in fields,
            deleting="deleting" in fields,
        )

    @property
    def total(self) -> int:
        return sum(getattr(self.counts, status) for status in Status)

    @property
    def done(self) -> int:
        return sum(getattr(self.counts, status) for status in ENDED)

    @property
    def completion_id(self) -> str:
        """The id of the webhook about its latest completion."""
        return f"msg_{self.id}_{self.ends}_completed"

    def urls(self, base_url: str) -> BatchUrls:
        """Return its URLs.  base_url: the API's URL, without a trailing slash."""
        url = f"{base_url}/v1/batches/{self.id}"
        return BatchUrls(
            self=url,
            deliveries=f"{url}/deliveries",
            failures=f"{url}/failures",
            cancel=f"{url}/cancel",
            coco=f"{url}/files/coco.json" if any(file.name == "coco.json" for file in self.files) else None,
        )

    def _expansion_view(self) -> ExpansionView | None:
        if self.expansion is None:
            return None
        found = self.listed if self.expansion is Expansion.DONE else self.found
        return ExpansionView(
            state=self.expansion,
            listed=self.listed,
            # Objects that came after they were counted are among those listed.
            found=None if found is None else max(found, self.listed),
            expanded=self.listed - self.rejected,
            rejected=self.rejected,
            error=self.error,
        )

    def view(self, base_url: str, job_ids: tuple[str, ...]) -> BatchView:
        """Return the view for its owner.  base_url: the API's URL, without a trailing slash."""
        url = f"{base_url}/v1/batches/{self.id}"
        return BatchView(
            id=self.id,
            status=BatchStatus.PROCESSING if self.ended_ms is None else BatchStatus.COMPLETED,
            created_at=utc_time(self.created_ms),
            ended_at=utc_time(self.ended_ms) if self.ended_ms is not None else None,
            total=self.total,
            done=self.done,
            counts=self.counts,
            metadata=self.metadata,
            source=self.source,
            expansion=self._expansion_view(),
            files=tuple(
                BatchFile(
                    name=file.name, size=file.size, content_type=file.content_type, url=f"{url}/files/{file.name}"
                )
                for file in self.files
            ),
            job_ids=job_ids,
            request_id=self.request_id or None,
            urls=self.urls(base_url),
        )
