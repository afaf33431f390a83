"""One HTTP session to a server, for asyncio: ``Transport``'s twin, over httpx2.

httpx2 is imported when a session is made: only this half of the client needs it.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from maskfleet.client.errors import broken_off, check_json, not_a_stream, problem_of, stream_interrupted
from maskfleet.client.packages import needed
from maskfleet.client.retries import CONNECT_S, MAX_TRIES, READ_S, OnRetry, Tries, reason
from maskfleet.client.transport import checked_key, checked_url

if TYPE_CHECKING:
    import httpx2


class AsyncTransport:
    """A session with the API key; see ``Transport``."""

    def __init__(
        self, api_url: str, api_key: str, *, max_tries: int = MAX_TRIES, on_retry: OnRetry | None = None
    ) -> None:
        """on_retry: called with a sentence before each wait.  Raises Refused as ``Transport`` does, MissingPackage."""
        needed("httpx2", "maskfleet[async]", "AsyncClient")
        import httpx2

        self.api_url = checked_url(api_url)
        self._api_key = checked_key(api_key)
        self._max_tries = max_tries
        self._on_retry = on_retry
        self._fault = httpx2.TransportError
        # Each held response and each stream has a connection of its own; only idle ones are limited.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self._session = httpx2.AsyncClient(limits=limits, verify=_trusted())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: bytes | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        held_s: float = 0.0,
    ) -> bytes:
        """Send a request to the API and return its response's body; see ``Transport.call``."""
        request = self._session.build_request(
            method,
            f"{self.api_url}{path}",
            json=json,
            content=data,
            files=files,
            params=params,
            headers={"Accept": "application/json", **(headers or {}), **self._key()},
        )
        response = await self._send(request, held_s=held_s)
        media_type = response.headers.get("Content-Type", "application/json")
        check_json(str(request.url), media_type, response.content, response.status_code)
        return response.content

    async def put(self, url: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Store bytes under a link.  The store must not see the API key."""
        await self._send(self._session.build_request("PUT", url, content=data, headers=dict(headers)))

    async def location(self, path: str) -> str:
        """Return the link to which the API sends a request on; the store must not see the API key."""
        request = self._session.build_request("GET", f"{self.api_url}{path}", headers=self._key())
        response = await self._send(request, redirected=True)
        return str(response.headers["Location"])

    @asynccontextmanager
    async def chunks(self, url: str, name: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read what is behind a link, in pieces.  name: the file's, for errors."""
        response = await self._send(self._session.build_request("GET", url), stream=True)
        try:
            yield response.aiter_bytes()
        except self._fault as error:
            raise broken_off(name) from error
        finally:
            await response.aclose()

    @asynccontextmanager
    async def lines(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an event stream's lines as they arrive; see ``Transport.lines``."""
        request = self._session.build_request("GET", f"{self.api_url}{path}", headers={**headers, **self._key()})
        response = await self._send(request, stream=True, max_tries=1)
        try:
            if response.headers.get("Content-Type", "").partition(";")[0] != "text/event-stream":
                raise not_a_stream(response.status_code)
            yield _lines(response.aiter_bytes())
        except self._fault as error:
            raise stream_interrupted() from error
        finally:
            await response.aclose()

    async def _send(
        self,
        request: httpx2.Request,
        *,
        held_s: float = 0.0,
        stream: bool = False,
        max_tries: int | None = None,
        redirected: bool = False,
    ) -> httpx2.Response:
        """redirected: a redirect is what is wanted; by default it is refused like any other error."""
        # Read once, so that each try sends the same bytes.
        await request.aread()
        read_s = READ_S + held_s
        request.extensions["timeout"] = {"connect": CONNECT_S, "read": read_s, "write": read_s, "pool": None}
        tries = Tries(str(request.url), max_tries or self._max_tries, self._on_retry)
        while True:
            try:
                response = await self._session.send(request, stream=stream, follow_redirects=False)
            except self._fault as error:
                await asyncio.sleep(tries.wait_after_silence(reason(error)))
                continue
            if response.has_redirect_location if redirected else response.status_code < 300:
                return response
            retry_after = response.headers.get("Retry-After")
            wait_s = tries.wait_after(response.status_code, response.reason_phrase, retry_after)
            if wait_s is None:
                body = await response.aread()
                raise problem_of(str(request.url), response.status_code, response.reason_phrase, body)
            await response.aclose()
            await asyncio.sleep(wait_s)

    def _key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}


def _trusted() -> ssl.SSLContext:
    """Trust whom ``Transport`` trusts: httpx2 by itself looks elsewhere, so the same server would pass in one only."""
    path = str(os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH)
    if Path(path).is_dir():
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut at line feeds alone: text may hold characters that Unicode takes for the end of a line, too."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
