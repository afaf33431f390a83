"""One HTTP session to a server, which retries where that is safe and can help."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self
from urllib.parse import urlsplit

import requests

from maskfleet.client.errors import Refused, broken_off, check_json, not_a_stream, problem_of, stream_interrupted
from maskfleet.client.retries import CONNECT_S, MAX_TRIES, READ_S, OnRetry, Tries, reason

#: Bytes of a download that are held at a time, however large the file is.
_CHUNK = 1 << 20


class Transport:
    """A session with the API key.  Every request is one that is safe to repeat, as all of the API's are: reads,
    cancel, uploads, and the creation of a job under its idempotency key.  ``asynchronous.transport`` is its twin.
    """

    def __init__(
        self, api_url: str, api_key: str, *, max_tries: int = MAX_TRIES, on_retry: OnRetry | None = None
    ) -> None:
        """on_retry: called with a sentence before each wait.  Raises Refused: see ``checked_url``, ``checked_key``."""
        self.api_url = checked_url(api_url)
        self._api_key = checked_key(api_key)
        self._max_tries = max_tries
        self._on_retry = on_retry
        self._session = requests.Session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def call(
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
        """Send a request to the API and return its response's body.  held_s: how long the server may hold it.

        Raises ApiError's subclasses: Refused for 4xx and for what is no maskfleet server, Unavailable for 5xx or no
        response.
        """
        request = requests.Request(
            method,
            f"{self.api_url}{path}",
            json=json,
            data=data,
            files=files,
            params=params,
            headers={"Accept": "application/json", **(headers or {})},
            auth=self._with_key,
        )
        response = self._send(request, held_s=held_s)
        media_type = response.headers.get("Content-Type", "application/json")
        check_json(request.url, media_type, response.content, response.status_code)
        return response.content

    def put(self, url: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Store bytes under a link.  The store must not see the API key.  Raises as ``call`` does."""
        self._send(requests.Request("PUT", url, data=data, headers=dict(headers)))

    def location(self, path: str) -> str:
        """Return the link to which the API sends a request on; the store must not see the API key."""
        request = requests.Request("GET", f"{self.api_url}{path}", auth=self._with_key)
        return self._send(request, redirected=True).headers["Location"]

    @contextmanager
    def chunks(self, url: str, name: str) -> Iterator[Iterator[bytes]]:
        """Read what is behind a link, in pieces.  name: the file's, for errors.  Raises as ``call`` does."""
        with self._send(requests.Request("GET", url), stream=True) as response:
            try:
                yield response.iter_content(_CHUNK)
            except requests.RequestException as error:
                raise broken_off(name) from error

    @contextmanager
    def lines(self, path: str, headers: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """Read an event stream's lines as they arrive.  Raises as ``call`` does, without a second try."""
        request = requests.Request("GET", f"{self.api_url}{path}", headers=dict(headers), auth=self._with_key)
        with self._send(request, stream=True, max_tries=1) as response:
            if response.headers.get("Content-Type", "").partition(";")[0] != "text/event-stream":
                raise not_a_stream(response.status_code)
            try:
                # Byte by byte, so that no read waits for more than has arrived; an event is about a kilobyte.
                yield response.iter_lines(chunk_size=1, decode_unicode=False)
            except requests.RequestException as error:
                raise stream_interrupted() from error

    def _send(
        self,
        request: requests.Request,
        *,
        held_s: float = 0.0,
        stream: bool = False,
        max_tries: int | None = None,
        redirected: bool = False,
    ) -> requests.Response:
        """redirected: a redirect is what is wanted; by default it is refused like any other error."""
        request.auth = request.auth or _without_key
        # Prepared once, so that each try sends the same bytes: a multipart body has a random boundary.
        prepared = self._session.prepare_request(request)
        settings = self._session.merge_environment_settings(prepared.url or "", {}, stream, None, None)
        tries = Tries(request.url, max_tries or self._max_tries, self._on_retry)
        while True:
            try:
                response = self._session.send(
                    prepared, timeout=(CONNECT_S, READ_S + held_s), allow_redirects=False, **settings
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                time.sleep(tries.wait_after_silence(reason(error)))
                continue
            if response.is_redirect if redirected else response.status_code < 300:
                return response
            wait_s = tries.wait_after(response.status_code, response.reason, response.headers.get("Retry-After"))
            if wait_s is None:
                raise problem_of(response.url, response.status_code, response.reason, response.content)
            response.close()
            time.sleep(wait_s)

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _without_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # If any auth is given, requests does not look in .netrc.
    return request


def checked_url(api_url: str) -> str:
    """Return a server's URL as requests are made from it: with its scheme, without a fragment or a slash at its end.

    A loopback address may come without ``http://``.  Raises Refused (``invalid_api_url``).
    """
    url = api_url.strip().partition("#")[0].rstrip("/")
    if "://" not in url:
        try:
            host = urlsplit(f"//{url}").hostname or ""
        except ValueError:
            host = ""
        if not _is_loopback(host):
            raise Refused(
                "invalid_api_url",
                f"The server's URL {api_url!r} has no scheme. Write https://{url}, or http://{url} if the server has "
                "no TLS.",
            )
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
        requests.Request("GET", url).prepare()
    except (ValueError, requests.RequestException):
        is_valid = False
    if not is_valid:
        raise Refused(
            "invalid_api_url",
            f"{api_url!r} is not a server's URL. Write its scheme, host and port, such as http://127.0.0.1:8000.",
        )
    return url


def checked_key(api_key: str) -> str:
    """Return an API key without the white space around it.  Raises Refused (``invalid_api_key``)."""
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise Refused("invalid_api_key", "The API key has characters that no key has. Copy it again, in full.")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
