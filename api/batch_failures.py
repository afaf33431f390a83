"""The images of a batch without a result: of a small one from its jobs' records, of an expanded one from its pages."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter

from maskfleet.api.services import Services
from maskfleet.jobs.errors import InvalidRequest, NotFound
from maskfleet.jobs.schema.batch import BatchFailure, BatchRecord
from maskfleet.jobs.schema.wire import Request
from maskfleet.jobs.status import Status

#: Pages that are read for one response.
PAGES_READ = 5


class FailuresQuery(Request):
    """Which page of a batch's failures."""

    limit: int = Field(100, ge=1, le=1000)
    cursor: Annotated[str, StringConstraints(max_length=40)] | None = Field(None, description="From the previous page.")


def failures_of(
    batch: BatchRecord, cursor: str | None, limit: int, services: Services
) -> tuple[tuple[BatchFailure, ...], str]:
    """Return some failures behind the cursor, and the next cursor; empty if nothing follows.

    Raises InvalidRequest (``invalid_cursor``), StoreUnavailable.
    """
    found = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", cursor or "0.0")
    if found is None:
        raise InvalidRequest("invalid_cursor", "The cursor is not one that this service issued. Start without one.")
    page, place = int(found[1]), int(found[2])
    if batch.source is None:
        return _of_records(batch, place, limit, services)
    return _of_pages(batch, page, place, limit, services)


def _of_records(batch: BatchRecord, place: int, limit: int, services: Services) -> tuple[tuple[BatchFailure, ...], str]:
    job_ids = services.batches.job_ids(batch.id)
    failures: list[BatchFailure] = []
    for number, (job_id, status) in enumerate(
        zip(job_ids[place:], services.ledger.statuses(job_ids[place:]), strict=True), place + 1
    ):
        if status not in (Status.FAILED, Status.CANCELED, Status.EXPIRED):
            continue
        record = services.ledger.read(job_id)
        if record is None:
            continue
        failures.append(
            BatchFailure(
                number=number,
                status=str(record.status),
                job_id=job_id,
                source=record.source or None,
                file_name=record.file_name or None,
                code=record.error.code if record.error else None,
                detail=record.error.detail if record.error else None,
            )
        )
        if len(failures) == limit:
            return tuple(failures), f"0.{number}" if number < len(job_ids) else ""
    return tuple(failures), ""


def _of_pages(
    batch: BatchRecord, page: int, place: int, limit: int, services: Services
) -> tuple[tuple[BatchFailure, ...], str]:
    pages, read = services.batches.pages(batch.id), 0
    failures: list[BatchFailure] = []
    for number in range(page, len(pages)):
        if pages[number].failures == 0:
            continue
        if read == PAGES_READ:
            return tuple(failures), f"{number}.0"
        read += 1
        try:
            lines = services.store.read(f"{pages[number].prefix}/outcomes.jsonl").splitlines()
        except NotFound:  # the batch is being deleted, or the store has lost it
            continue
        first = place if number == page else 0
        for line_number in range(first, len(lines)):
            failure = _FAILURE.validate_json(lines[line_number])
            if failure.status == Status.SUCCEEDED:
                continue
            if len(failures) == limit:
                return tuple(failures), f"{number}.{line_number}"
            failures.append(failure)
    return tuple(failures), ""


_FAILURE = TypeAdapter(BatchFailure)
