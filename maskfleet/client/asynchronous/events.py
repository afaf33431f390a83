"""A job's event stream, read as it arrives.

For asyncio.  Made from ``maskfleet.client.events`` by ``make async-client``; change that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from maskfleet.client.asynchronous.transport import AsyncTransport
from maskfleet.jobs.schema.record import JobView


async def follow(
    transport: AsyncTransport, job_id: str, seen: str, seconds: float | None
) -> AsyncGenerator[tuple[str, JobView]]:
    """Yield the job and its version, for each change after the version ``seen`` (empty: from now).

    Ends after the job's end, after ``seconds``, or when the server ends the stream.  Raises ApiError's subclasses:
    Unavailable if the stream is interrupted, is not an event stream, or the server has no room for another.
    """
    headers = {"Last-Event-ID": seen} if seen else {}
    if seconds is not None:
        headers["Prefer"] = f"wait={int(seconds)}"
    async with transport.lines(f"/v1/jobs/{job_id}/events", headers) as lines:
        version = seen
        async for line in lines:
            name, _, value = line.partition(b": ")
            if name == b"id":
                version = value.decode()
            elif name == b"data":
                yield (version, JobView.model_validate_json(value))
