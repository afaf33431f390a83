"""The messages of Celery's queues: bells, how one is rung, and which messages a node accepts.

A bell says that jobs may wait in a queue.  It names none: a node that hears it claims the next job from the ledger, and
drops a bell that finds nothing.  So a bell that is lost, late or doubled costs at most a moment: whoever claims a job
rings again while more wait, and the courier rings at each tick where jobs wait and no bell lies.  One in a node's own
queue calls that node: it has the image of a job that was just created.

Anyone who may write to the lists in Redis can put anything there.  kombu and Celery parse messages in the node's own
event loop, and the first one that they cannot parse ends it, and the node with it.  So messages are validated here
first: only those of the form that ``Publisher`` writes pass, and only their validated fields are passed on.  Dropping
one loses no job.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Annotated, Any, Literal
from urllib.parse import quote

import redis
from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport.redis import (
    Channel as RedisChannel,
    SentinelChannel as RedisSentinelChannel,
    Transport as RedisTransport,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import (
    WRITE_PROBE,
    Connection,
    ManagedConnection,
    SentinelUrl,
    TlsConnection,
    follow,
    redis_errors,
    sentinel_options,
    tls_options,
)
from maskfleet.jobs.ledger.outages import REASONS, as_unavailable
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.queue import UrgencyCycle, canary_queue
from maskfleet.jobs.schema.wire import JOB_ID
from maskfleet.jobs.settings import SharedSettings

#: The one task; what is published with one version is taken by nodes of another, so it never changes.
TASK_NAME = "maskfleet.segment"
#: The argument of a bell, and of the message with which a node proves that it hears.
BELL, CANARY = "bell", "canary"
#: The most bells that lie in a queue: each node that hears one rings for the next ones, so a few wake all.
MOST_BELLS = 8
#: Above the longest run with its model load: recovery belongs to the ledger's lease, not to this.
VISIBILITY_TIMEOUT_S = 3 * 3600

logger = get_logger()


def celery_app(settings: SharedSettings) -> Celery:
    """Make the Celery app that the API, courier and workers share.  It connects on first use.

    It has no result backend (the ledger holds the state; a backend makes publishing hang while Redis is down), JSON
    only, acknowledgement after the work, and no prefetching beyond one message.
    """
    url = settings.redis_url.get_secret_value()
    managed = SentinelUrl.read(url)
    app = Celery("maskfleet", broker=_sentinel_urls(managed) if managed else url, set_as_current=False)
    app.conf.update(
        broker_transport=SentinelTransport if managed else Transport,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        # However long Redis is down: otherwise a node would end, and load its model again.
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "queue_order_strategy": UrgencyCycle,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            # kombu's default retries would block a publisher for 6 s; nodes reconnect by Celery's settings, not these.
            "max_retries": 1,
            "interval_start": 0,
            **({"master_name": managed.name, "sentinel_kwargs": sentinel_options(settings)} if managed else {}),
        },
        task_create_missing_queues=True,
        broker_use_ssl=tls_options(settings) or None,
    )
    return app


def _sentinel_urls(managed: SentinelUrl) -> str:
    """Return the URLs that kombu takes: one for each Sentinel, the primary's credentials and database in the first."""
    user, password = quote(managed.user, safe=""), quote(managed.password, safe="")
    credentials = f"{user}:{password}@" if password else ""
    return ";".join(f"sentinel://{credentials}{host}:{port}/{managed.database}" for host, port in managed.sentinels)


class Publisher:
    """Publishes messages."""

    def __init__(self, settings: SharedSettings) -> None:
        self._app = celery_app(settings)

    def publish(self, argument: str, queue: str) -> None:
        """Publish a message.  Raises QueueUnavailable at once when Redis does not accept it."""
        try:
            self._publish(argument, queue)
        except QueueUnavailable as error:
            if error.reason != "read_only":
                raise
            self._publish(argument, queue)  # the connection to the replica is closed by now, and another one made

    def _publish(self, argument: str, queue: str) -> None:
        try:
            self._app.send_task(TASK_NAME, args=[argument], queue=queue, retry=False)
        except (KombuError, redis.RedisError, OSError) as error:
            # kombu wraps what Redis said.  Whatever it is, the job is recorded, and a bell is rung later.
            said = as_unavailable(error.__cause__ or error)
            raise said or QueueUnavailable(said=f"{type(error).__name__}: {error}"[:500]) from error


class Bells:
    """The bells of all queues."""

    def __init__(self, client: redis.Redis, publisher: Publisher) -> None:
        self._redis = client
        self._publisher = publisher

    def ring(self, queue: str, jobs: int = 1) -> None:
        """Wake workers for jobs that wait in a queue, unless enough bells lie there.  Raises QueueUnavailable."""
        with redis_errors():
            lying = self._redis.llen(queue)
        for _ in range(min(jobs, MOST_BELLS) - lying):
            self._publisher.publish(BELL, queue)

    def call(self, node: str) -> None:
        """Wake one node, by a bell in its own queue.  Raises QueueUnavailable."""
        self._publisher.publish(BELL, canary_queue(node))


def is_ours(argument: object) -> bool:
    """Return whether a message may have this argument.

    A job's id was what messages held until version 2 of the ledger; such a message is a bell like any other.
    """
    return isinstance(argument, str) and (argument in (BELL, CANARY) or re.fullmatch(JOB_ID, argument) is not None)


class _Known(BaseModel):
    """The known fields of a message; others are dropped, since a newer Celery may write more."""

    model_config = ConfigDict(frozen=True, strict=True, serialize_by_alias=True)


class _NoKeywords(_Known):
    model_config = ConfigDict(extra="forbid")


class _NothingAfter(_Known):
    """Follow-up tasks of a message: there must be none."""

    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


#: Arguments, keywords and follow-up tasks.  The task itself checks the one argument.
_CALL: TypeAdapter[tuple[tuple[str], _NoKeywords, _NothingAfter]] = TypeAdapter(
    tuple[tuple[str], _NoKeywords, _NothingAfter]
)


def _understood(body: str) -> str:
    call = _CALL.validate_json(base64.b64decode(body, validate=True))
    return base64.b64encode(_CALL.dump_json(call)).decode()


def _ours(task: str) -> str:
    if task != TASK_NAME:
        raise ValueError("unknown task")
    return task


class _Headers(_Known):
    task: Annotated[str, AfterValidator(_ours)]
    id: str
    root_id: str | None = None
    retries: int = 0
    # With these, Celery would wait, drop the message, or kill the child process at a time that the message chooses.
    eta: None = None
    expires: None = None
    timelimit: tuple[None, None] = (None, None)
    # Set by kombu on a message that a node handed back.
    redelivered: bool = False


class _DeliveryInfo(_Known):
    exchange: str
    routing_key: str
    redelivered: bool = False


class _Properties(_Known):
    delivery_tag: str
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    correlation_id: str | None = None
    priority: int = 0


class Message(_Known):
    """An entry of a queue, as defined by Celery's protocol 2 and kombu's Redis transport."""

    body: Annotated[str, AfterValidator(_understood)]
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


class _Client(redis.Redis):
    """The client with which a node waits for messages."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:  # Any: redis-py's own
        """Read a response; an invalid entry is treated as if none had arrived in time."""
        response = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]  # redis-py's
        if command_name != "BRPOP" or not response:
            return response
        queue, entry = response
        try:
            message = Message.model_validate_json(entry)
        except ValidationError:
            # Not its text, which may be huge, or a secret; the digest identifies copies.
            digest = hashlib.sha256(entry).hexdigest()
            logger.error("entry_refused", queue=queue.decode(), bytes=len(entry), sha256=digest)
            return None
        return queue, message.model_dump_json().encode()


class _Patient:
    """A connection of kombu's that treats each outage of Redis as a lost connection, after which it connects again.

    kombu and Celery take other errors for bugs, and end the node.
    """

    # Not after NOSCRIPT, which redis-py answers by loading the script.
    left_on = frozenset(REASONS) - {"NOSCRIPT"}


class _PatientConnection(_Patient, Connection):
    pass


class _PatientTlsConnection(_Patient, TlsConnection):
    pass


class _PatientManagedConnection(_Patient, ManagedConnection):
    pass


class _Checked:
    """What both channels have in common: the client above, and a Redis that takes writes before anything is sent."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: kombu ships no types
        super().__init__(*args, **options)
        # kombu has made sure that Redis responds.  One that refuses writes would fail each step of a consumer's start,
        # again and again; Celery waits longer and longer for a connection that cannot be made.
        try:
            self.client.execute_command(*WRITE_PROBE)  # type: ignore[attr-defined]  # kombu's
        except Exception:  # raised again
            self._disconnect_pools()  # type: ignore[attr-defined]  # kombu's; as it does itself
            raise

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # type: ignore[misc]  # kombu's; it checks redis-py's version
        return _Client

    def _get_pool(self, asynchronous: bool = False) -> redis.ConnectionPool:
        pool: redis.ConnectionPool = super()._get_pool(asynchronous=asynchronous)  # type: ignore[misc]  # kombu's
        follow(pool)
        return pool


class Channel(_Checked, RedisChannel):
    """kombu's channel for a Redis at one address."""

    connection_class = _PatientConnection
    connection_class_ssl = _PatientTlsConnection


class SentinelChannel(_Checked, RedisSentinelChannel):
    """kombu's channel for a Redis that Sentinels name."""

    connection_class = _PatientManagedConnection


class Transport(RedisTransport):
    """kombu's Redis transport, passing on valid messages only."""

    Channel = Channel


class SentinelTransport(RedisTransport):
    """The same, by way of Sentinels."""

    Channel = SentinelChannel
