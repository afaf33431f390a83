"""Segment Anything as a durable job service.  These names are its face in Python; docs/python.md describes them.

What a name needs is imported when it is first used: the service's programs live in this package, too, and need none.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors
    from maskfleet.client.asynchronous.client import AsyncClient as AsyncClient
    from maskfleet.client.asynchronous.job import AsyncJob as AsyncJob
    from maskfleet.client.client import Client as Client
    from maskfleet.client.errors import (
        ApiError as ApiError,
        AuthenticationError as AuthenticationError,
        Conflict as Conflict,
        DamagedFile as DamagedFile,
        JobFailed as JobFailed,
        MissingPackage as MissingPackage,
        NotFound as NotFound,
        Refused as Refused,
        Unavailable as Unavailable,
        WaitTimeout as WaitTimeout,
        WebhookRejected as WebhookRejected,
    )
    from maskfleet.client.job import Job as Job
    from maskfleet.client.masks import Mask as Mask, Masks as Masks
    from maskfleet.client.submission import JobFields as JobFields, JobOptionFields as JobOptionFields, Photo as Photo
    from maskfleet.client.webhooks import WebhookEvent as WebhookEvent, verify_webhook as verify_webhook
    from maskfleet.jobs.schema.api import (
        PingView as PingView,
        Redeliveries as Redeliveries,
        TokenView as TokenView,
        WebhookSecretView as WebhookSecretView,
    )
    from maskfleet.jobs.schema.batch import BatchView as BatchView
    from maskfleet.jobs.schema.delivery import DeliveryView as DeliveryView
    from maskfleet.jobs.schema.events import UnknownEvent as UnknownEvent
    from maskfleet.jobs.schema.fleet import ModelFleet as ModelFleet
    from maskfleet.jobs.schema.image import ImageView as ImageView
    from maskfleet.jobs.schema.inline import InlineMasks as InlineMasks
    from maskfleet.jobs.schema.manifest import Manifest as Manifest
    from maskfleet.jobs.schema.prompts import Prompt as Prompt
    from maskfleet.jobs.schema.record import JobView as JobView
    from maskfleet.jobs.schema.spec import ImageSource as ImageSource, Webhook as Webhook

#: Each name's module, for Python itself.
_MODULE_OF = {
    "AsyncClient": "maskfleet.client.asynchronous.client",
    "AsyncJob": "maskfleet.client.asynchronous.job",
    "Client": "maskfleet.client.client",
    "ApiError": "maskfleet.client.errors",
    "AuthenticationError": "maskfleet.client.errors",
    "Conflict": "maskfleet.client.errors",
    "DamagedFile": "maskfleet.client.errors",
    "JobFailed": "maskfleet.client.errors",
    "MissingPackage": "maskfleet.client.errors",
    "NotFound": "maskfleet.client.errors",
    "Refused": "maskfleet.client.errors",
    "Unavailable": "maskfleet.client.errors",
    "WaitTimeout": "maskfleet.client.errors",
    "WebhookRejected": "maskfleet.client.errors",
    "Job": "maskfleet.client.job",
    "Mask": "maskfleet.client.masks",
    "Masks": "maskfleet.client.masks",
    "JobFields": "maskfleet.client.submission",
    "JobOptionFields": "maskfleet.client.submission",
    "Photo": "maskfleet.client.submission",
    "WebhookEvent": "maskfleet.client.webhooks",
    "verify_webhook": "maskfleet.client.webhooks",
    "PingView": "maskfleet.jobs.schema.api",
    "Redeliveries": "maskfleet.jobs.schema.api",
    "TokenView": "maskfleet.jobs.schema.api",
    "WebhookSecretView": "maskfleet.jobs.schema.api",
    "BatchView": "maskfleet.jobs.schema.batch",
    "DeliveryView": "maskfleet.jobs.schema.delivery",
    "UnknownEvent": "maskfleet.jobs.schema.events",
    "ModelFleet": "maskfleet.jobs.schema.fleet",
    "ImageView": "maskfleet.jobs.schema.image",
    "InlineMasks": "maskfleet.jobs.schema.inline",
    "Manifest": "maskfleet.jobs.schema.manifest",
    "Prompt": "maskfleet.jobs.schema.prompts",
    "JobView": "maskfleet.jobs.schema.record",
    "ImageSource": "maskfleet.jobs.schema.spec",
    "Webhook": "maskfleet.jobs.schema.spec",
}

__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name in _MODULE_OF:
            return getattr(importlib.import_module(_MODULE_OF[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
