"""The services that a request uses: made once for the app, fetched by the routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis
from flask import current_app, g, request

from maskfleet.api.auth import ApiKeys, Caller
from maskfleet.api.long_poll import Waits
from maskfleet.api.metrics import JobFigures, RequestMetrics
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.durability import Durability
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.places import QueuePlaces
from maskfleet.jobs.ledger.webhook_secrets import WebhookSecrets
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.record import JobRecord, JobView
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store

EXTENSION = "maskfleet"


@dataclass(frozen=True, slots=True)
class Services:
    """The settings and the clients made from them.  Clients connect on first use."""

    settings: ApiSettings
    #: For the rate limits, which are not part of the ledger.
    redis: redis.Redis
    keys: ApiKeys
    ledger: Ledger
    epoch: Epoch
    batches: Batches
    places: QueuePlaces
    deliveries: Deliveries
    webhook_secrets: WebhookSecrets
    worker_registry: WorkerRegistry
    store: Store
    bells: Bells
    waits: Waits
    metrics: RequestMetrics


def make_services(settings: ApiSettings) -> Services:
    client = connect(settings)
    durability = Durability(settings.redis_wait_replicas, settings.redis_wait_aof, settings.redis_wait_s)
    ledger = Ledger(client, settings.retention_s, settings.tenant_weights, durability)
    worker_registry = WorkerRegistry(client)
    epoch = Epoch(client)
    deliveries = Deliveries(client, retention_s=settings.retention_s)
    return Services(
        settings=settings,
        redis=client,
        keys=ApiKeys(settings.api_keys, KeyStore(client)),
        ledger=ledger,
        epoch=epoch,
        batches=Batches(client),
        places=QueuePlaces(client, settings.tenant_weights),
        deliveries=deliveries,
        webhook_secrets=WebhookSecrets(client, settings.masters),
        worker_registry=worker_registry,
        store=Store(settings),
        bells=Bells(client, Publisher(settings)),
        waits=Waits(ledger, settings.threads // 2),
        metrics=RequestMetrics(JobFigures(JobCounts(client), deliveries, worker_registry, epoch)),
    )


def current_services() -> Services:
    return cast(Services, current_app.extensions[EXTENSION])


def tenant() -> str:
    """Return the caller's tenant, on a route that needs a key."""
    return cast(Caller, g.caller).tenant


def check_priority(priority: str) -> None:
    """Raise Forbidden (``missing_scope``) if the caller's key does not allow jobs of this priority."""
    if priority == Priority.INTERACTIVE:
        cast(Caller, g.caller).require(Scope.INTERACTIVE)


def base_url() -> str:
    """Return the base URL of links in responses, without a trailing slash."""
    return (current_services().settings.public_url or request.host_url).rstrip("/")


def whole_view(record: JobRecord, services: Services, address: str) -> JobView:
    """Return the view of a job with its place in the queue and its attempts.  address: see ``base_url``."""
    default = services.settings.model_name
    place = None
    if record.status is Status.QUEUED:
        place = services.places.of(record, services.worker_registry.serving(record.summary.model or default))
    return record.view(default, address, place, services.ledger.attempts(record.id))
