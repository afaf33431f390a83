"""The client: a server's jobs from Python, and the verification of its webhooks.

Its names are exported by ``maskfleet`` itself: ``from maskfleet import Client``.
"""

from maskfleet.client.client import Client
from maskfleet.client.errors import (
    ApiError,
    AuthenticationError,
    Conflict,
    DamagedFile,
    NotFound,
    Refused,
    Unavailable,
    WaitTimeout,
    WebhookRejected,
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
    "AuthenticationError",
    "BatchView",
    "Client",
    "Conflict",
    "DamagedFile",
    "DeliveryView",
    "ImageSource",
    "JobFields",
    "JobView",
    "Manifest",
    "NotFound",
    "Photo",
    "PingView",
    "Prompt",
    "Redeliveries",
    "Refused",
    "Unavailable",
    "WaitTimeout",
    "Webhook",
    "WebhookEvent",
    "WebhookRejected",
    "verify_webhook",
]
