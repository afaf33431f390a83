"""The client: a server's jobs from Python, and the verification of its webhooks.

Its names are exported by ``maskfleet`` itself: ``from maskfleet import Client``.
"""

from maskfleet.client.client import Client
from maskfleet.client.errors import (
    ApiError,
    DamagedFile,
    KeyRefused,
    NotThere,
    Refused,
    Unavailable,
    WaitedTooLong,
    WebhookRejected,
    WrongState,
)
from maskfleet.client.submission import JobFields, Photo
from maskfleet.client.webhooks import WebhookEvent, verify_webhook
from maskfleet.jobs.schema.api import PingView, Redeliveries
from maskfleet.jobs.schema.batch import BatchView
from maskfleet.jobs.schema.delivery import DeliveryView
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import ImageSource, Webhook

__all__ = [
    "ApiError",
    "BatchView",
    "Client",
    "DamagedFile",
    "DeliveryView",
    "ImageSource",
    "JobFields",
    "JobView",
    "KeyRefused",
    "Manifest",
    "NotThere",
    "Photo",
    "PingView",
    "Prompt",
    "Redeliveries",
    "Refused",
    "Unavailable",
    "WaitedTooLong",
    "Webhook",
    "WebhookEvent",
    "WebhookRejected",
    "WrongState",
    "verify_webhook",
]
