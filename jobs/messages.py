"""What a node takes off its queues: entries of the form that `maskfleet.jobs.queue.Publisher` writes, and no others.

Whoever may write to Redis' lists can put anything there.  kombu and Celery read an entry in the node's own event loop,
which ends, and with it the node, over the first that they cannot make sense of.  So an entry is read here before: one
of another form is dropped, and only what was understood of the others is handed on.  No job is lost with an entry that
is dropped: the outbox publishes what no worker claims once more.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Any, Literal

import redis
from kombu.transport.redis import Channel as RedisChannel
from kombu.transport.redis import Transport as RedisTransport
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.queue import TASK_NAME

logger = get_logger()


class _Known(BaseModel):
    """What is known of a message; all else in it is left out, since a newer Celery may write more."""

    model_config = ConfigDict(frozen=True, strict=True, serialize_by_alias=True)


class _NoKeywords(_Known):
    model_config = ConfigDict(extra="forbid")


class _NothingAfter(_Known):
    """Other tasks that a message may have run after its own: none."""

    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


#: Arguments, keywords and what follows.  Whether the one argument names a job is the task's own question.
_CALL: TypeAdapter[tuple[tuple[str], _NoKeywords, _NothingAfter]] = TypeAdapter(
    tuple[tuple[str], _NoKeywords, _NothingAfter]
)


def _understood(body: str) -> str:
    call = _CALL.validate_json(base64.b64decode(body, validate=True))
    return base64.b64encode(_CALL.dump_json(call)).decode()


def _ours(task: str) -> str:
    if task != TASK_NAME:
        raise ValueError("no task of ours")
    return task


class _Headers(_Known):
    task: Annotated[str, AfterValidator(_ours)]
    id: str
    root_id: str | None = None
    retries: int = 0
    # Celery would wait, drop the message, or end the child at a time of the message's choice.
    eta: None = None
    expires: None = None
    timelimit: tuple[None, None] = (None, None)
    # kombu's mark on a message that a node gave back.
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
    """An entry of a queue, as Celery's protocol 2 and kombu's Redis transport lay it out."""

    body: Annotated[str, AfterValidator(_understood)]
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


class _Client(redis.Redis):
    """The client that a node waits with for entries."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:  # Any: redis-py's own
        """Read an answer; an entry that is refused is as if none had come in time."""
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]  # redis-py's
        if command_name != "BRPOP" or not answer:
            return answer
        queue, entry = answer
        try:
            message = Message.model_validate_json(entry)
        except ValidationError:
            # Not its text, which may be anything, without end, or a secret; the digest finds its copies.
            digest = hashlib.sha256(entry).hexdigest()
            logger.error("entry_refused", queue=queue.decode(), bytes=len(entry), sha256=digest)
            return None
        return queue, message.model_dump_json().encode()


class Channel(RedisChannel):
    """kombu's channel, with that client."""

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # type: ignore[no-untyped-call]  # kombu's; it looks at redis-py's version
        return _Client


class Transport(RedisTransport):
    """kombu's Redis transport, which hands on nothing but messages."""

    Channel = Channel
