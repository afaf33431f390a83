"""A job's event stream, read as it arrives."""

from __future__ import annotations

from collections.abc import Iterator

import requests

from maskfleet.client.errors import Unavailable
from maskfleet.client.transport import Transport
from maskfleet.jobs.schema.record import JobView


def follow(transport: Transport, job_id: str, seen: str, seconds: float | None) -> Iterator[tuple[str, JobView]]:
    """Yield the job and its version, for each change after the version ``seen`` (empty: from now).

    Ends after the job's end, after ``seconds``, or when the server ends the stream.  Raises ApiError's subclasses:
    Unavailable if the stream is interrupted, is not an event stream, or the server has no room for another.
    """
    headers = {"Last-Event-ID": seen} if seen else {}
    if seconds is not None:
        headers["Prefer"] = f"wait={int(seconds)}"
    with transport.stream(f"/v1/jobs/{job_id}/events", headers) as response:
        if response.headers.get("Content-Type", "").partition(";")[0] != "text/event-stream":
            raise Unavailable(
                "not_a_stream", f"The server responded {response.status_code}, but not with an event stream."
            )
        version = seen
        try:
            # Byte by byte, so that no read waits for more than has arrived; an event is about a kilobyte.
            for line in response.iter_lines(chunk_size=1, decode_unicode=False):
                name, _, value = line.partition(b": ")
                if name == b"id":
                    version = value.decode()
                elif name == b"data":
                    yield version, JobView.model_validate_json(value)
        except requests.RequestException as error:
            raise Unavailable("no_answer", "The event stream was interrupted.") from error
