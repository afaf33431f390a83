"""Segment Anything as a durable job service.  These names are its face in Python; docs/python.md describes them.

What a name needs is imported when it is first used: the service's programs live in this package, too, and need none.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskfleet.client import (
        ApiError,
        AuthenticationError,
        BatchView,
        Client,
        Conflict,
        DamagedFile,
        DeliveryView,
        ImageSource,
        JobFields,
        JobView,
        Manifest,
        NotFound,
        Photo,
        PingView,
        Prompt,
        Redeliveries,
        Refused,
        Unavailable,
        WaitTimeout,
        Webhook,
        WebhookEvent,
        WebhookRejected,
        verify_webhook,
    )

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

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in __all__:
            return getattr(importlib.import_module("maskfleet.client"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
