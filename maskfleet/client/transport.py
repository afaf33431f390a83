"""One HTTP session to a server, which retries where that is safe and can help."""

from __future__ import annotations

import ipaddress
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Self
from urllib.parse import urlsplit

import requests

from maskfleet.client.errors import Refused, Unavailable, problem_of

#: Statuses that mean "not now" and that nothing was done; 429 only with ``Retry-After``.
RETRIED = frozenset({429, 502, 503, 504})
#: One attempt and up to four more: about ten seconds with the waits below, enough for a server to restart.
MAX_TRIES = 5
#: The first wait between tries, doubled each time, with up to as much again of jitter.
FIRST_WAIT_S = 0.5
#: The longest ``Retry-After`` that is waited for.
LONGEST_WAIT_S = 30.0
#: Time to connect, and to wait for more data.
CONNECT_S, READ_S = 5.0, 60.0


class Transport:
    """A session with the API key.  ``send`` is for requests that are safe to repeat, as all of the API's are:
    reads, cancel, uploads, and the creation of a job under its idempotency key.
    """

    def __init__(
        self,
        api_url: str,
        api_key: str,
        *,
        max_tries: int = MAX_TRIES,
        on_retry: Callable[[str], object] | None = None,
    ) -> None:
        """on_retry: called with a sentence before each wait.  Raises Refused: see ``checked_url``, ``checked_key``."""
        self.api_url = checked_url(api_url)
        self._api_key = checked_key(api_key)
        self._max_tries = max_tries
        self._on_retry = on_retry or (lambda _: None)
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
    ) -> requests.Response:
        """Send a request to the API and return its response.  held_s: how long the server may hold it.

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
        response = self.send(request, held_s=held_s)
        kind = response.headers.get("Content-Type", "application/json")
        if response.content and "json" not in kind:
            raise Refused(
                "not_maskfleet",
                f"{request.url} responded with {kind.partition(';')[0]} instead of JSON. Is this the address of a "
                "maskfleet server?",
                status=response.status_code,
            )
        return response

    def stream(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        """Send a request once and return its response, to be read as it arrives and then closed."""
        request = requests.Request("GET", f"{self.api_url}{path}", headers=dict(headers), auth=self._with_key)
        return self.send(request, stream=True, max_tries=1)

    def send(
        self, request: requests.Request, *, held_s: float = 0.0, stream: bool = False, max_tries: int | None = None
    ) -> requests.Response:
        """Send any request, including those to the store, which must not carry the API key."""
        request.auth = request.auth or _without_key
        # Prepared once, so that each try sends the same bytes: a multipart body has a random boundary.
        prepared = self._session.prepare_request(request)
        settings = self._session.merge_environment_settings(prepared.url or "", {}, stream, None, None)
        tried = 0
        max_tries = max_tries or self._max_tries
        while True:
            tried += 1
            last = tried >= max_tries
            try:
                response = self._session.send(
                    prepared, timeout=(CONNECT_S, READ_S + held_s), allow_redirects=False, **settings
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                what = f"No response from {request.url.partition('?')[0]}: {_reason(error)}"
                if last:
                    raise Unavailable(
                        "no_answer",
                        f"{what} (attempts: {tried}). Check the address, and that the server is running.",
                    ) from error
                self._pause(_wait_s(tried, ""), what, tried, max_tries)
                continue
            if response.status_code < 300:
                return response
            wait_s = _wait_s(tried, response.headers.get("Retry-After", ""))
            retry_time_known = (
                response.status_code != requests.codes.too_many_requests or "Retry-After" in response.headers
            )
            if response.status_code not in RETRIED or not retry_time_known or last or wait_s > LONGEST_WAIT_S:
                raise problem_of(response)
            response.close()
            self._pause(wait_s, f"The server responded {response.status_code} {response.reason}", tried, max_tries)

    def _pause(self, wait_s: float, what: str, tried: int, max_tries: int) -> None:
        self._on_retry(f"{what}. Trying again in {wait_s:.1f} s (attempt {tried + 1} of {max_tries}).")
        time.sleep(wait_s)

    def _with_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


def _without_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # If any auth is given, requests does not look in .netrc.
    return request


def _wait_s(tried: int, retry_after: str) -> float:
    wait_s: float = FIRST_WAIT_S * 2 ** (tried - 1)
    wait_s += random.uniform(0, wait_s)  # noqa: S311 - spreads clients out; no secret
    return max(wait_s, int(retry_after)) if retry_after.isdigit() else wait_s


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


def _reason(error: requests.RequestException) -> str:
    """Say in a few words why there was no response."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {CONNECT_S:g} s"
    if isinstance(error, requests.Timeout):
        return "it did not answer in time"
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)|certificate verify failed: ([\w -]+)", str(error))
    if isinstance(error, requests.exceptions.SSLError):
        return f"its certificate is not accepted, {found[2].strip()}" if found and found[2] else "TLS failed"
    return found[1].strip().lower() if found and found[1] else "the connection was closed"
