"""A job's view with its masks, which are in its manifest."""

from __future__ import annotations

from pydantic import ConfigDict, ValidationError

from maskfleet.api.services import Services, base_url, view_with_spec
from maskfleet.jobs.errors import JobError, NotFound, RecordUnreadable
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.inline import InlineMasks, InlineOmitted, WhyNotInline
from maskfleet.jobs.schema.record import JobRecord, JobView
from maskfleet.jobs.schema.wire import Wire
from maskfleet.jobs.status import Status

logger = get_logger()


class _OfManifest(Wire):
    """What is read here of a manifest."""

    model_config = ConfigDict(extra="ignore")

    inline: InlineMasks | None = None
    inline_omitted: WhyNotInline | None = None


def view_with_inline(record: JobRecord, services: Services) -> JobView:
    """Return the view of a job; with its masks, if it asked for them and has succeeded.

    A store that does not answer leaves the masks out: the job is shown all the same.
    """
    view = view_with_spec(record, services, base_url())
    if record.summary.inline is None or record.status is not Status.SUCCEEDED or record.result is None:
        return view
    found = _masks(record.id, record.result.manifest_key, f"{view.urls.self}/files/coco.json", services)
    return view.model_copy(update={"inline" if isinstance(found, InlineMasks) else "inline_omitted": found})


def _masks(job_id: str, manifest_key: str, elsewhere: str, services: Services) -> InlineMasks | InlineOmitted:
    """Return a job's masks, or why there are none.  elsewhere: the URL where they are if they were too large."""
    try:
        body = services.store.read(manifest_key)
        found = services.cpu.run(len(body), _OfManifest.model_validate_json, body)
    except NotFound:
        return InlineOmitted(code="result_not_found", detail="The result is no longer in the store.")
    except ValidationError:
        logger.error("manifest_unreadable", job_id=job_id)
        unreadable = RecordUnreadable("result")
        return InlineOmitted(code=unreadable.code, detail=unreadable.detail)
    except JobError as error:
        return InlineOmitted(code=error.code, detail="The object store does not respond. Get the job again.")
    if found.inline is not None:
        return found.inline
    why = found.inline_omitted or WhyNotInline(
        code="inline_not_written", detail="The job was run by a worker of a version that writes no masks inline."
    )
    return InlineOmitted(code=why.code, detail=why.detail, url=elsewhere)
