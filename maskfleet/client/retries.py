"""Whether a request is worth another try, and when: the same for both clients."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from maskfleet.client.errors import Unavailable

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

#: Called with a sentence before each wait for another try.
OnRetry = Callable[[str], object]


class Tries:
    """The tries of one request, which is safe to repeat, as all of the API's are."""

    def __init__(self, url: str, max_tries: int, on_retry: OnRetry | None) -> None:
        self._url = url.partition("?")[0]
        self._max_tries = max_tries
        self._on_retry = on_retry
        self._tried = 1

    def wait_after_silence(self, reason: str) -> float:
        """Return how long to wait for the next try when there was no response.

        reason: why, in a few words.  Raises Unavailable after the last try.
        """
        what = f"No response from {self._url}: {reason}"
        if self._tried >= self._max_tries:
            raise Unavailable(
                "no_answer",
                f"{what} (attempts: {self._tried}). Check the address, and that the server is running.",
            )
        return self._next(self._wait_s(), what)

    def wait_after(self, status: int, phrase: str, retry_after: str | None) -> float | None:
        """Return how long to wait for the next try after a response of 300 or more; None if that one is final."""
        if status not in RETRIED or self._tried >= self._max_tries or (status == 429 and retry_after is None):
            return None
        wait_s = max(self._wait_s(), seconds_of(retry_after or ""))
        if wait_s > LONGEST_WAIT_S:
            return None
        return self._next(wait_s, f"The server responded {status} {phrase}")

    def _wait_s(self) -> float:
        wait_s: float = FIRST_WAIT_S * 2 ** (self._tried - 1)
        return wait_s + random.uniform(0, wait_s)  # noqa: S311 - spreads clients out; no secret

    def _next(self, wait_s: float, what: str) -> float:
        self._tried += 1
        if self._on_retry is not None:
            self._on_retry(f"{what}. Trying again in {wait_s:.1f} s (attempt {self._tried} of {self._max_tries}).")
        return wait_s


def seconds_of(retry_after: str) -> float:
    """Return the seconds that ``Retry-After`` asks for: a number, or a date.  Source: RFC 9110, section 10.2.3."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def reason(error: Exception) -> str:
    """Say in a few words why there was no response.  error: of requests or of httpx2."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ConnectTimeout" in kinds:
        return f"no connection within {CONNECT_S:g} s"
    if kinds & {"Timeout", "TimeoutException"}:
        return "it did not answer in time"
    text = " ".join(_texts(error))
    if refused := re.search(r"certificate verify failed: ([\w -]+)", text):
        return f"its certificate is not accepted, {refused[1].strip()}"
    if "SSLError" in kinds or "SSL:" in text:
        return "TLS failed"
    if found := re.search(r"\[Errno (-?\d+)\] ([\w ]+)", text):
        # asyncio has words of its own for what the system says.
        return (os.strerror(int(found[1])) if int(found[1]) > 0 else found[2]).strip().lower()
    return "the connection was closed"


def _texts(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        if isinstance(error, BaseExceptionGroup):
            yield from (str(one) for one in error.exceptions)
        error = error.__cause__ or error.__context__
