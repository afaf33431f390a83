"""The receiving side of webhooks: verify the signature and parse the event."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from standardwebhooks import Webhook as Signer
from standardwebhooks.webhooks import EmptyWebhookSecretError

from maskfleet.client.errors import WebhookRejected
from maskfleet.jobs.schema.events import BatchEvent, Event, Ping, UnknownEvent

#: How long a webhook may be in transit, including the clocks' difference.  Source: Standard Webhooks' own libraries.
TOLERANCE_S = 300.0
#: The required headers.  Source: the Standard Webhooks specification, section "Webhook Headers".
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

#: What a webhook reports: a job, a batch, a ping that tests its receiver, or what only a newer version knows.
WebhookEvent = Event | BatchEvent | Ping | UnknownEvent
_KNOWN: TypeAdapter[Event | BatchEvent | Ping] = TypeAdapter(Event | BatchEvent | Ping)


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secrets: str | Iterable[str], *, tolerance_s: float = TOLERANCE_S
) -> WebhookEvent:
    """Check a webhook's signature and return its event.

    body: the request's raw bytes.  headers: names in any case.  secrets: your tenant's secret, ``whsec_…``, or
    several during a rotation (``Client.webhook_secret().all``); it is enough that one of them matches one of the
    signatures.
    An event that only a newer version knows is returned as UnknownEvent; fields that it added are kept.
    A webhook may arrive more than once, with the same ``webhook-id`` header.
    Raises WebhookRejected, whose ``code`` says why; ValueError for a malformed secret, or if there are none.
    """
    signers = _signers([secrets] if isinstance(secrets, str) else list(secrets))
    if not signers:
        raise ValueError("At least one secret is needed to verify webhooks.")
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]
    if missing:
        raise WebhookRejected("missing_header", f"The header {missing[0]} is missing.")
    signed_at = _signed_at(given[TIMESTAMP], tolerance_s)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise WebhookRejected(
            "wrong_signature", "The body is not UTF-8 text, so it cannot be what was signed."
        ) from error
    expected = [signer.sign(given[ID], signed_at, text).encode() for signer in signers]
    shown = [one.encode() for one in given[SIGNATURE].split(" ")]
    if not any(hmac.compare_digest(one, other) for one in expected for other in shown):
        raise WebhookRejected("wrong_signature", "It was signed with another secret or changed in transit.")
    return _read(body)


def _read(body: bytes) -> WebhookEvent:
    try:
        return _KNOWN.validate_json(body)
    except ValidationError:
        pass
    try:
        return UnknownEvent.model_validate_json(body)
    except ValidationError as error:
        raise WebhookRejected("unknown_event", "The signature is correct, but the body is not an event.") from error


def check_secrets(secrets: Iterable[str]) -> None:
    """Raise ValueError for a malformed secret; the message does not contain it."""
    _signers(secrets)


def _signers(secrets: Iterable[str]) -> list[Signer]:
    try:
        return [Signer(secret) for secret in secrets]
    except (EmptyWebhookSecretError, ValueError) as error:
        raise ValueError(
            "A webhook secret is whsec_ followed by base64, exactly as `maskfleet webhook secret` prints it."
        ) from error


def _signed_at(timestamp: str, tolerance_s: float) -> datetime:
    if not re.fullmatch(r"[0-9]{1,11}", timestamp, re.ASCII):
        raise WebhookRejected("invalid_timestamp", "The timestamp is not a number of seconds.")
    age_s = time.time() - int(timestamp)
    if abs(age_s) > tolerance_s:
        side = f"{age_s:.0f} s ago" if age_s > 0 else f"{-age_s:.0f} s from now"
        code = "too_old" if age_s > 0 else "too_new"
        raise WebhookRejected(
            code, f"It was signed {side} by this machine's clock; the tolerance is {tolerance_s:g} s."
        )
    return datetime.fromtimestamp(int(timestamp), UTC)
