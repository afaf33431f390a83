"""A job's event stream, read as it arrives."""

from __future__ import annotations

from collections.abc import Generator

from maskfleet.client.transport import Transport
from maskfleet.jobs.schema.record import JobView


def follow(transport: Transport, job_id: str, seen: str, seconds: float | None) -> Generator[tuple[str, JobView]]:
    """Yield the job and its version, for each change after the version ``seen`` (empty: from now).

    Ends after the job's end, after ``seconds``, or when the server ends the stream.  Raises ApiError's subclasses:
    Unavailable if the stream is interrupted, is not an event stream, or the server has no room for another.
    """
    headers = {"Last-Event-ID": seen} if seen else {}
    if seconds is not None:
        headers["Prefer"] = f"wait={int(seconds)}"
    with transport.lines(f"/v1/jobs/{job_id}/events", headers) as lines:
        version = seen
        for line in lines:
            name, _, value = line.partition(b": ")
            if name == b"id":
                version = value.decode()
            elif name == b"data":
                yield version, JobView.model_validate_json(value)
