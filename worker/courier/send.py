"""One delivery attempt of a webhook, signed as Standard Webhooks specifies."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
from standardwebhooks import Webhook
from urllib3.exceptions import HTTPError

from maskfleet.jobs.addresses import AddressRefused
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.deliveries import Delivery
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome

#: How many bytes of a response are kept, for the receiver's owner to see.
RESPONSE_BYTES = 1024
#: The longest ``Retry-After`` of a receiver that is honoured.
LONGEST_RETRY_AFTER_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A delivery attempt, and how long the receiver asked us to wait before the next."""

    attempt: DeliveryAttempt
    retry_after_s: float = 0.0


def signed_headers(delivery_id: str, body: str, secrets: tuple[str, ...], now: datetime) -> dict[str, str]:
    """Sign a body with each of the tenant's secrets, so that its receivers can change to a new one in their own time.

    Source: the Standard Webhooks specification, sections "Webhook Headers" and "Signature scheme".
    """
    return {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(delivery_id, now, body) for secret in secrets),
    }


def send(
    delivery: Delivery,
    body: str,
    secrets: tuple[str, ...],
    session: requests.Session,
    timeout_s: float,
    traceparent: str = "",
) -> Sent:
    """Post the body once.  Redirects are not followed: if a receiver moves, its owner must change the URL.

    traceparent: the header with which the receiver can go on with the trace; empty for none.
    """
    # Redis' clock, not this machine's: receivers reject a timestamp that is too far from their own time.
    now = datetime.fromtimestamp(delivery.now_s, UTC)
    headers = signed_headers(delivery.id, body, secrets, now)
    if traceparent:
        headers["traceparent"] = traceparent
    began = time.monotonic()

    def attempt(outcome: DeliveryAttemptOutcome, detail: str | None = None, **fields: int | str) -> DeliveryAttempt:
        return DeliveryAttempt.model_validate(
            {
                "number": delivery.attempts_total,
                "at": now,
                "duration_s": round(time.monotonic() - began, 3),
                "outcome": outcome,
                "detail": detail,
                "headers": None if delivery.subject else headers,
                **fields,
            }
        )

    try:
        response = session.post(
            delivery.url, data=body.encode(), headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        )
    except AddressRefused as error:
        refused = f"The webhook URL is not allowed: {error.detail}"
        return Sent(attempt(DeliveryAttemptOutcome.REFUSED, refused, error=error.code))
    except requests.RequestException as error:
        return Sent(attempt(DeliveryAttemptOutcome.FAILED, error=type(error).__name__))
    with response:
        outcome, detail = _judged(response.status_code)
        tried = attempt(outcome, detail, status=response.status_code, answer=_beginning(response))
        return Sent(tried, 0.0 if outcome is DeliveryAttemptOutcome.DELIVERED else _retry_after_s(response))


def unsent(delivery: Delivery, error: JobError) -> Sent:
    """Return the attempt that could not be made, because what it tells of cannot be read."""
    now = datetime.fromtimestamp(delivery.now_s, UTC)
    return Sent(
        DeliveryAttempt(
            number=delivery.attempts_total,
            at=now,
            duration_s=0.0,
            outcome=DeliveryAttemptOutcome.FAILED,
            error=error.code,
            detail=error.detail,
        )
    )


def _judged(status: int) -> tuple[DeliveryAttemptOutcome, str | None]:
    if 200 <= status < 300:
        return DeliveryAttemptOutcome.DELIVERED, None
    if status == 410:
        return DeliveryAttemptOutcome.REFUSED, "The receiver responded 410 Gone, so this endpoint is disabled."
    if 300 <= status < 400:
        return DeliveryAttemptOutcome.FAILED, "Redirects are not followed; set the URL that the receiver redirects to."
    return DeliveryAttemptOutcome.FAILED, None


def _beginning(response: requests.Response) -> str:
    """Read the first bytes of a response as text, replacing undecodable and unprintable characters."""
    data = b""
    with suppress(HTTPError, OSError):  # the status has arrived, and is what counts
        while len(data) < RESPONSE_BYTES and (
            more := response.raw.read1(RESPONSE_BYTES - len(data), decode_content=False)
        ):
            data += more
    text = data.decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text.replace("\r\n", "\n"))


def _retry_after_s(response: requests.Response) -> float:
    """Read ``Retry-After``, in seconds or as a date, at most a day.  Source: RFC 9110, section 10.2.3."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return min(float(asked), LONGEST_RETRY_AFTER_S)
    until, now = _date(asked), _date(response.headers.get("Date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER_S) if until else 0.0


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
