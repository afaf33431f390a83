"""One try at telling a caller that a job has ended: signed as Standard Webhooks say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import requests
from standardwebhooks import Webhook

from jobs.addresses import AddressRefused
from jobs.deliveries import Delivery


class Outcome(StrEnum):
    """What a try came to."""

    DELIVERED = "delivered"
    #: The receiver says that it is gone (410), or its address is one that is not sent to.
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Try:
    """A try's outcome.  ``retry_after_s`` is what the receiver asked for."""

    outcome: Outcome
    detail: str
    retry_after_s: float = 0.0


def signed_headers(delivery_id: str, body: str, secrets: tuple[str, ...], now: datetime) -> dict[str, str]:
    """Sign a body with every secret that is live, so that receivers can change theirs at their own time.

    Source: the Standard Webhooks specification, sections "Webhook Headers" and "Signature scheme".
    """
    return {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(delivery_id, now, body) for secret in secrets),
    }


def send(delivery: Delivery, body: str, secrets: tuple[str, ...], session: requests.Session, timeout_s: float) -> Try:
    """Post the body once.  Redirects are not followed: a receiver that moved must be told by its owner."""
    # Redis' clock and not ours: a receiver refuses what is signed at another time than its own.
    headers = signed_headers(delivery.id, body, secrets, datetime.fromtimestamp(delivery.now_s, UTC))
    try:
        answer = session.post(
            delivery.url, data=body.encode(), headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        )
    except AddressRefused:
        return Try(Outcome.REFUSED, "This service does not send to that address.")
    except requests.RequestException as error:
        return Try(Outcome.FAILED, type(error).__name__)
    with answer:
        status = answer.status_code
        if 200 <= status < 300:
            return Try(Outcome.DELIVERED, str(status))
        if status == 410:
            return Try(Outcome.REFUSED, "The receiver answers 410: it wants no more.")
        if 300 <= status < 400:
            return Try(Outcome.FAILED, f"The receiver answers {status}; redirects are not followed.")
        return Try(Outcome.FAILED, f"The receiver answers {status}.", _seconds(answer.headers.get("Retry-After", "")))


def _seconds(retry_after: str) -> float:
    """Read ``Retry-After`` in seconds, at most a day; its form as a date is not waited for."""
    return min(float(retry_after), 86400.0) if retry_after.isdigit() else 0.0
