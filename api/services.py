"""The services that a request uses: made once for the app, fetched by the routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis
from flask import current_app, g, request

from maskfleet.api.auth import ApiKeys, Caller
from maskfleet.api.bytes_under_way import BytesUnderWay
from maskfleet.api.cpu import Cpu
from maskfleet.api.long_poll import Hold, Waits
from maskfleet.api.metrics import JobFigures, RequestMetrics
from maskfleet.api.node_calls import NodeCalls
from maskfleet.api.remembered import Remembered
from maskfleet.api.tokens import Tokens
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.durability import Durability
from maskfleet.jobs.ledger.ends import Ends
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.fleet import Fleet, Loads
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.places import QueuePlaces
from maskfleet.jobs.ledger.webhook_secrets import WebhookSecrets
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.queue import served_by
from maskfleet.jobs.schema.record import JobRecord, JobView, shown_spec
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store

EXTENSION = "maskfleet"
#: Connections to Redis of one process; a command that finds them all in use waits for one.
REDIS_CONNECTIONS = 64
#: A longer spec is not shown with its job, which may be polled every second.
MAX_SHOWN_SPEC_BYTES = 32 * 1024


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
    fleet: Fleet
    store: Store
    bells: Bells
    node_calls: NodeCalls
    waits: Waits
    bytes_under_way: BytesUnderWay
    cpu: Cpu
    metrics: RequestMetrics
    #: What ``/ready`` and ``/metrics`` found last.
    readiness: Remembered[None]
    exposition: Remembered[bytes]
    #: What the workers have to do, as it was found last.
    loads: Remembered[Loads]


def make_services(settings: ApiSettings) -> Services:
    client = connect(settings, max_connections=REDIS_CONNECTIONS)
    durability = Durability(settings.redis_wait_replicas, settings.redis_wait_aof, settings.redis_wait_s)
    ledger = Ledger(client, settings.retention_s, settings.tenant_weights, durability)
    worker_registry = WorkerRegistry(client)
    fleet = Fleet(client, worker_registry)
    epoch = Epoch(client)
    deliveries = Deliveries(client, retention_s=settings.retention_s)
    metrics = RequestMetrics(JobFigures(JobCounts(client), deliveries, fleet, epoch))
    bells = Bells(client, Publisher(settings))
    return Services(
        settings=settings,
        redis=client,
        keys=ApiKeys(settings.api_keys, KeyStore(client), Tokens(settings.masters)),
        ledger=ledger,
        epoch=epoch,
        batches=Batches(client),
        places=QueuePlaces(client, settings.tenant_weights),
        deliveries=deliveries,
        webhook_secrets=WebhookSecrets(client, settings.masters),
        worker_registry=worker_registry,
        fleet=fleet,
        store=Store(settings),
        bells=bells,
        node_calls=NodeCalls(ledger, bells, settings.image_node_wait_ms),
        waits=Waits(
            ledger,
            metrics.count_held,
            most=settings.max_held,
            most_per_tenant=settings.max_held_per_tenant,
            ends=Ends(client),
        ),
        bytes_under_way=BytesUnderWay(
            settings.max_bytes_under_way, max(settings.max_body_bytes, settings.max_bytes_under_way // 2)
        ),
        cpu=Cpu(),
        metrics=metrics,
        readiness=Remembered(settings.health_cache_s),
        exposition=Remembered(settings.health_cache_s),
        loads=Remembered(settings.health_cache_s),
    )


def current_services() -> Services:
    return cast(Services, current_app.extensions[EXTENSION])


def current_caller() -> Caller:
    """Return who sent the request, on a route that needs a key."""
    return cast(Caller, g.caller)


def tenant() -> str:
    """Return the caller's tenant, on a route that needs a key."""
    return current_caller().tenant


def check_priority(priority: str) -> None:
    """Raise Forbidden (``missing_scope``) if the caller's key does not allow jobs of this priority."""
    if priority == Priority.INTERACTIVE:
        current_caller().require(Scope.INTERACTIVE)


def hold_response() -> Hold:
    """Hold this request's response, which must be released.  Raises HoldQuota, TooManyHeld."""
    services, authorization = current_services(), cast("str | None", g.authorization)
    return services.waits.hold(
        tenant(), lambda: services.keys.caller_of(authorization), request.environ.get("gunicorn.socket")
    )


def take_room_for_body() -> None:
    """Wait until this request's body may be read; the room is given back at the request's end.

    Raises ByteQuota, TooManyBytes.
    """
    services, length = current_services(), request.content_length
    most = request.max_content_length or services.settings.max_body_bytes
    if length is None or length <= most:  # a longer one is refused unread; one of unknown length may be the longest
        g.bytes_taken = services.bytes_under_way.take(tenant(), most if length is None else length)


def give_room_back(_error: BaseException | None = None) -> None:
    """Give back what this request's body took."""
    taken = g.pop("bytes_taken", 0)
    if taken:
        current_services().bytes_under_way.give_back(tenant(), taken)


def is_metrics_port() -> bool:
    """Return whether the request came in at ``metrics_bind``, by its connection's own end: headers may be forged."""
    _, _, port = current_services().settings.metrics_bind.rpartition(":")
    connection = request.environ.get("gunicorn.socket")
    return bool(port) and connection is not None and connection.getsockname()[1] == int(port)


def base_url() -> str:
    """Return the base URL of links in responses, without a trailing slash."""
    return (current_services().settings.public_url or request.host_url).rstrip("/")


def whole_view(record: JobRecord, services: Services, address: str) -> JobView:
    """Return the view of a job with its place in the queue and its attempts.  address: see ``base_url``."""
    default = services.settings.model_name
    place = None
    if record.status is Status.QUEUED:
        served = served_by(record.queue, record.summary.model or default)
        place = services.places.of(record, services.worker_registry.serving(served))
    return record.view(default, address, place, services.ledger.attempts(record.id))


def view_with_spec(record: JobRecord, services: Services, address: str) -> JobView:
    """Return the same view, in a request, with what the job asks for, as long as the record has it."""
    view = whole_view(record, services, address)
    # A token for one image shows jobs that its tenant's other programs sent, but not all that they asked for.
    if current_caller().image or (record.status.ended and record.status is not Status.FAILED):
        return view
    spec = services.ledger.spec_json(record.id, MAX_SHOWN_SPEC_BYTES)
    return view.model_copy(update={"spec": shown_spec(spec)}) if spec else view
