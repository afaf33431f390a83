"""Everything that can go wrong with a job, each with a stable code.

    JobError
    ├── CallerError              the request must change; never retried
    │   ├── InvalidRequest       malformed_json, invalid_spec, body_too_large, too_many_images,
    │   │                        image_not_known, …
    │   ├── Unauthorized         no_api_key, unknown_api_key, invalid_token, token_expired
    │   ├── Forbidden            missing_scope, token_not_allowed, image_not_allowed
    │   ├── NotFound             job_not_found, batch_not_found, upload_not_found, …
    │   ├── Conflict             job_not_ended, job_already_ended, masks_not_kept, image_not_kept
    │   ├── InvalidHost          invalid_host, host_not_allowed
    │   ├── UnsupportedCoding    content_encoding_not_supported
    │   ├── TooManySecrets       too_many_secrets: too many of a tenant's webhook secrets overlap
    │   ├── OverQuota            too_many_jobs_in_flight; worth retrying unchanged, as are the next five
    │   │   ├── RecordsFull      over_quota: of bytes in Redis
    │   │   ├── OverStorage      too_many_upload_bytes: in the object store
    │   │   ├── HoldQuota        too_many_held: streams and waits of the tenant
    │   │   └── ByteQuota        too_many_bytes: bodies of the tenant's requests
    │   ├── TooManyRedeliveries  too_many_redeliveries: the tenant had as many webhooks sent again as it may in an hour
    │   ├── BodyTooSlow          the request's body did not arrive in time
    │   ├── InvalidPrompt        point_outside_image, box_outside_image
    │   └── InvalidImage         not_an_image, image_truncated, image_too_large, image_changed, …
    └── ServiceError             the service failed; retried
        ├── QueueUnavailable     Redis did not respond, is full, or accepts no writes now
        ├── NotConfirmed         what was recorded may not outlive the failure of a server
        ├── LedgerVersion        the data in Redis has another version; an operator must act
        ├── NodeFault            perhaps this node's own fault: another node tries, uncharged
        │   ├── StoreMisconfigured  the store refuses this program's credentials, clock or bucket
        │   ├── SourceUnreachable   source_unreachable: this node could not connect to the image's host
        │   ├── ModelWrong          model_wrong: this node's model does not compute what it should; no job meets it
        │   └── RecordUnreadable    a record that this version cannot read
        ├── StoreUnavailable     S3 did not respond
        ├── SourceUnavailable    the image's own host did not respond
        ├── BacklogFull          the backlog is so long that another job would wait too long
        ├── TooManyStreams       the service holds as many streams and waits as it can
        ├── TooManyHeld          the same, for a wait
        ├── TooManyBytes         as many bytes of request bodies are being processed as fit into memory
        └── AttemptFailed        the attempt itself failed

A code never changes its meaning.  The same code is used wherever the error is found: in the response to
the request if it can be detected at once, on the failed job if only the worker can see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self


class JobError(Exception):
    """An error with a stable ``code``, an HTTP ``status`` and a sentence that says what is wrong and what to do."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong"
    retry_after_s: int | None = None
    #: Each invalid field, where known.
    faults: tuple[FieldFault, ...] = ()

    def __init__(self, code: str, detail: str, *, status: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.http_status = status if status is not None else self.status

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log says of it, beyond code and detail, and a response does not."""
        return {}

    def locate(self, pointer: str) -> Self:
        """Record where in the body the error is, as a JSON pointer; return the error itself, to be raised again.

        It replaces a pointer into the image alone; faults of prompts, which do not fit that image, follow.
        """
        prompts = tuple(fault for fault in self.faults if fault.pointer.startswith("/prompts/"))
        detail = self.detail if prompts or not self.faults else self.faults[0].detail
        self.faults = (FieldFault(pointer, self.code, detail), *prompts)
        self.detail = f"{pointer}: {detail}"
        return self


class CallerError(JobError):
    """The caller must change something; retrying the same request cannot help."""

    status = 400
    title = "The request cannot be processed"


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One invalid field.

    pointer: a JSON pointer into the body, or the name of a query parameter.  code: what is wrong with it.  detail: what
    to do.
    """

    pointer: str
    code: str
    detail: str


class InvalidRequest(CallerError):
    """The request is malformed, or does not describe a job."""

    status = 422
    title = "The request is not valid"

    def __init__(
        self, code: str, detail: str, *, status: int | None = None, faults: tuple[FieldFault, ...] = ()
    ) -> None:
        super().__init__(code, detail, status=status)
        self.faults = faults

    @classmethod
    def at(cls, pointer: str, code: str, detail: str, *, fault: str | None = None) -> Self:
        """Return the error for one invalid field.

        pointer: the field, as a JSON pointer.  fault: the field's own code, when it is not the request's.
        """
        return cls(code, f"{pointer}: {detail}", faults=(FieldFault(pointer, fault or code, detail),))


class Unauthorized(CallerError):
    status = 401
    title = "An API key is required"


class Forbidden(CallerError):
    """The key is valid but does not allow this."""

    status = 403
    title = "The API key does not allow this"


class NotFound(CallerError):
    status = 404
    title = "Not found"


class Conflict(CallerError):
    status = 409
    title = "The job's state does not allow this"


class TooManySecrets(CallerError):
    """So many earlier webhook secrets still sign that another rotation must wait, or end them."""

    status = 409
    title = "Too many webhook secrets at once"


class OverQuota(CallerError):
    """The tenant has as many jobs as allowed; it must wait until some have ended."""

    status = 429
    title = "Too many jobs in flight"
    retry_after_s = 10


class OverStorage(OverQuota):
    """The tenant's images take as many bytes in the store as allowed."""

    title = "Too many bytes of images"
    #: They are counted by the hour.
    retry_after_s = 3600

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            "too_many_upload_bytes",
            f"Your images may take up at most {max_bytes:,} bytes in the store. Nothing was stored; the oldest ones "
            "are removed after some days. Name images by s3_uri or url instead.",
        )


class RecordsFull(OverQuota):
    """The tenant's records take as many bytes as allowed; it must wait until jobs end, or old records expire."""

    title = "Too many records"

    def __init__(self, expires_in_s: float, max_bytes: int) -> None:
        super().__init__(
            "over_quota",
            f"The records of your jobs may take {max_bytes:,} bytes in all, and this request would exceed that. "
            "Ended jobs count until their records expire: delete some that you no longer need, or wait.",
        )
        self.retry_after_s = max(10, min(600, math.ceil(expires_in_s)))


class InvalidHost(CallerError):
    """The Host header is malformed, or names a host that this service is not known by."""

    title = "The Host header is not accepted"


class UnsupportedCoding(CallerError):
    """The request's body is compressed."""

    status = 415
    title = "The body's coding is not supported"

    def __init__(self, coding: str) -> None:
        super().__init__(
            "content_encoding_not_supported",
            f"The body has the Content-Encoding {coding[:40]!r}. Send it as it is, without that header.",
        )


class TooManyRedeliveries(CallerError):
    """The tenant had as many webhooks sent again as it may within an hour."""

    status = 429
    title = "Too many webhooks sent again"

    def __init__(self, per_hour: int, retry_after_s: int) -> None:
        super().__init__(
            "too_many_redeliveries",
            f"You may have {per_hour:,} webhooks sent again within an hour. Try again in {retry_after_s} s.",
        )
        self.retry_after_s = retry_after_s


class HoldQuota(OverQuota):
    """The tenant has as many streams and waits open as allowed."""

    title = "Too many streams and waits"
    retry_after_s = 5

    def __init__(self, most: int) -> None:
        super().__init__(
            "too_many_held",
            f"At most {most} of your event streams and waits may be open at once. End some, or ask without "
            "`Prefer: wait`.",
        )


class ByteQuota(OverQuota):
    """The tenant has as many bytes of request bodies under way as allowed."""

    title = "Too many bytes under way"
    retry_after_s = 5

    def __init__(self, most: int) -> None:
        super().__init__(
            "too_many_bytes",
            f"At most {most:,} bytes of your request bodies are processed at once. Send fewer at a time, or upload "
            "images with POST /v1/uploads.",
        )


class BodyTooSlow(CallerError):
    """The request's body did not arrive in time."""

    status = 408
    title = "The request took too long"

    def __init__(self) -> None:
        super().__init__(
            "body_too_slow",
            "The request's body arrived too slowly, or stopped. Send it again; upload large images with "
            "POST /v1/uploads.",
        )


class InvalidPrompt(CallerError):
    """A prompt is outside the image, or its earlier mask cannot be used."""

    status = 422
    title = "A prompt does not fit the image"

    def __init__(self, code: str, detail: str, *, faults: tuple[FieldFault, ...] = ()) -> None:
        super().__init__(code, detail)
        self.faults = faults


class InvalidImage(CallerError):
    """The image cannot be fetched, or is not accepted."""

    status = 422
    title = "The image cannot be used"


class ServiceError(JobError):
    """The service failed; the same request may succeed later."""

    status = 503
    title = "The service is temporarily unavailable"
    retry_after_s = 5


class QueueUnavailable(ServiceError):
    """Redis cannot serve now.

    reason: why, in a word for logs and health checks (jobs/ledger/outages.py).  said: what Redis said, or its
    connection, for logs only.
    """

    def __init__(
        self,
        detail: str = "The job queue is not responding. Send the request again, with the same Idempotency-Key if it "
        "had one: it may have been recorded.",
        *,
        reason: str = "not_responding",
        said: str = "",
    ) -> None:
        super().__init__("queue_unavailable", detail)
        self.reason = reason
        self.said = said

    @property
    def log_fields(self) -> dict[str, str]:
        return {"reason": self.reason, "said": self.said}


class NotConfirmed(ServiceError):
    """A record was made, but not confirmed by as many servers or disks as the settings ask for."""

    def __init__(self) -> None:
        super().__init__(
            "record_not_confirmed",
            "This was recorded, but not yet where it outlives the failure of a server: it may be kept or lost. Send "
            "the request again with the same Idempotency-Key, which makes no second job; for a retry, see the job.",
        )


class LedgerVersion(ServiceError):
    """The data in Redis was written by an older or a newer version of these programs."""

    def __init__(self, found: int, needed: int) -> None:
        what_to_do = (
            "Run `maskfleet ledger upgrade` (docs/operations.md, Upgrading)."
            if found < needed
            else "Run the version of maskfleet that wrote it, or a newer one."
        )
        super().__init__(
            "ledger_version", f"The ledger in Redis has version {found}; this program needs {needed}. {what_to_do}"
        )


class NodeFault(ServiceError):
    """What went wrong may be this node's own fault, so no job fails for it before another node agrees.

    verdict: what the job fails with once they do.  counts: whether it may have the node withdraw; callers can provoke
    the others.
    """

    def __init__(self, code: str, detail: str, *, verdict: JobError | None = None, counts: bool = True) -> None:
        super().__init__(code, detail)
        self.verdict = verdict or self
        self.counts = counts


class StoreMisconfigured(NodeFault):
    """The store refuses what is this service's own."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "store_misconfigured",
            f"The service cannot use its own object store: {why} Its operator has to act; then try again.",
        )


class ModelWrong(NodeFault):
    """The model fails its test: weights that are damaged, or a device that computes wrongly.

    recorded: whether there are recorded masks, or the fault shows without any, so that a process that loads the model
    anew would notice it as well.
    """

    def __init__(self, why: str, *, recorded: bool) -> None:
        super().__init__("model_wrong", why)
        self.recorded = recorded


#: The code of RecordUnreadable, also as a webhook's reason for not being sent.
UNREADABLE = "record_unreadable"


class RecordUnreadable(NodeFault):
    """A record in Redis is damaged, or holds what only a newer version knows."""

    status = 500

    def __init__(self, what: str, why: str = "") -> None:
        """what: of which the record is.  why: what cannot be read in it."""
        super().__init__(
            UNREADABLE,
            f"This version of the service cannot read the record of the {what}: it is damaged, or from a newer version"
            f"{f' ({why})' if why else ''}.",
            counts=False,
        )


class StoreUnavailable(ServiceError):
    def __init__(self, detail: str = "The object store is not responding. Send the request again.") -> None:
        super().__init__("store_unavailable", detail)


class SourceUnavailable(ServiceError):
    """The image's host failed, timed out or broke off."""

    def __init__(self, detail: str) -> None:
        super().__init__("source_unavailable", detail)


class SourceUnreachable(NodeFault):
    """This node could not connect to the image's host: the host is down, or the node's network is.

    A caller can name a host that is down, so it does not count against the node.
    """

    def __init__(self, host: str) -> None:
        verdict = SourceUnavailable("The image's host could not be reached, or did not respond in time.")
        super().__init__("source_unreachable", verdict.detail, verdict=verdict, counts=False)
        self.host = host


class BacklogFull(ServiceError):
    """The backlog is so long that another job would wait too long."""

    def __init__(self, wait_s: float, max_wait_s: float) -> None:
        super().__init__(
            "backlog_full",
            f"A new job would wait about {wait_s:.0f} s for a worker. Nothing was recorded; send it again later, "
            "or with a more urgent priority.",
        )
        # An estimate: by then the backlog should have shrunk to the limit.
        self.retry_after_s = max(1, min(600, math.ceil(wait_s - max_wait_s)))


class TooManyStreams(ServiceError):
    def __init__(self) -> None:
        super().__init__(
            "too_many_streams", "The service cannot hold another stream open. Poll the job instead, or retry later."
        )


class TooManyHeld(ServiceError):
    def __init__(self) -> None:
        super().__init__(
            "too_many_held", "The service cannot hold another response. Ask without `Prefer: wait`, or retry later."
        )


class TooManyBytes(ServiceError):
    def __init__(self) -> None:
        super().__init__(
            "too_many_bytes",
            "The service is processing as many large requests as it can. Nothing was recorded; send it again later, "
            "or upload images with POST /v1/uploads.",
        )


class AttemptFailed(ServiceError):
    """An attempt failed in a way that another may not: out of memory, a time limit, a bug."""

    status = 500
