"""The receiving side of webhooks: is this one ours, and what does it say."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from standardwebhooks import Webhook as Signer
from standardwebhooks import WebhookVerificationError

from jobs.events import Event
from maskfleet.problems import WebhookRejected


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str) -> Event:
    """Check a webhook's signature and give the event that it tells of.

    body: the request's bytes as they came.  secret: as the operator has it, ``whsec_…``; any one of the
    signatures in the header may fit, so that secrets can be rotated.
    A webhook may come more than once: its ``webhook-id`` header is then the same.
    Raises WebhookRejected: no or another signature, a changed body, a timestamp over five minutes off.
    """
    try:
        Signer(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError) as error:
        raise WebhookRejected(f"The webhook is not to be trusted: {error}.") from error
    try:
        return Event.model_validate_json(body)
    except ValidationError as error:
        raise WebhookRejected("The webhook is signed, but is no event of a job.") from error
