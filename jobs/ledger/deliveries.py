"""Webhooks to be sent, and the log of their deliveries.

The script that ends a job, or with it a batch, also queues its webhook.  Couriers lease what is due, and record each
attempt.  What one tenant sends to one host has its own queue and its own circuit breaker: see
jobs/ledger/lua/webhooks.lua.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import cast

import redis

from maskfleet.jobs.errors import UNREADABLE, RecordUnreadable, TooManyRedeliveries
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.delivery import FAILED_STATES, DeliveryAttempt, DeliveryRecord, DeliveryState

#: An endpoint that responded 410 is tried again after this time, if there are still webhooks for it.
DISABLED_S = 30 * 24 * 3600
#: The most webhooks that one call queues again, and that all calls of one tenant do within an hour.
MAX_REDELIVERED = 10_000
#: Ids that one run of a script takes; Redis does nothing else while it runs.
_PAGE = 500

logger = get_logger()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that is due.

    subject: the job or batch that it is about; empty for a ping.
    attempts_since_queued: attempts since it was queued, including this one.  attempts_total: of this attempt, across
    redeliveries. body: empty before the first attempt.  forced: its owner asked for it.  now_s: Redis' clock, in
    seconds since the epoch.  hung: its host did not answer in time of late.
    """

    id: str
    tenant: str
    subject: str
    event: str
    url: str
    body: str
    attempts_since_queued: int
    attempts_total: int
    forced: bool
    now_s: int
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a host is paused: after this many failures in a row (0: never), for ``first_s`` and up to 32 times that.

    Then one webhook is sent to probe whether the host is back.  Webhooks that wait meanwhile use up no attempt.
    A tenant is paused likewise when as many of its hosts hang and none answers.
    quick_s: a host that takes longer, and does not answer at all, hangs.
    """

    failures: int = 10
    first_s: float = 10.0
    quick_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Shares:
    """What may be sent at once: to one host by all couriers, and by this courier, which has so many senders.

    sending: how many this courier is sending for each tenant.  hanging: the tenants for which one of these takes long.
    The script shares the senders out among the tenants.
    """

    per_host: int
    senders: int
    sending: Mapping[str, int]
    hanging: frozenset[str] = frozenset()


class Redelivered(StrEnum):
    """The outcome of REDELIVER."""

    QUEUED = "queued"
    #: It is being sent right now.
    WAITING = "waiting"
    #: It is not one of those asked for.
    SKIPPED = "skipped"
    OVER_BUDGET = "over_budget"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RangeRedelivered:
    """The webhooks of a range that were queued again, oldest first.  more: there may be others."""

    ids: tuple[str, ...] = ()
    more: bool = False


class Deliveries:
    """The webhooks' queues and their log.  Ended ones are kept for ``retention_s``."""

    def __init__(self, client: redis.Redis, breaker: Breaker | None = None, retention_s: int = 7 * 24 * 3600) -> None:
        self._redis = client
        self._breaker = breaker or Breaker()
        self._retention_ms = retention_s * 1000
        self._due = load_script(client, "due_deliveries")
        self._attempted = load_script(client, "delivery_attempted")
        self._body = load_script(client, "delivery_body")
        self._redeliver = load_script(client, "redeliver")
        self._ping = load_script(client, "ping")

    # The courier's side.

    def due(self, limit: int, *, lease_s: float, shares: Shares) -> list[Delivery]:
        """Lease webhooks that are due; one without a reported outcome within ``lease_s`` is due again."""
        sending = [
            part
            for tenant, count in shares.sending.items()
            for part in (tenant, count, "1" if tenant in shares.hanging else "")
        ]
        with redis_errors():
            flat = self._due(
                args=[
                    limit,
                    int(lease_s * 1000),
                    shares.per_host,
                    shares.senders,
                    self._breaker.failures,
                    self._retention_ms,
                    *sending,
                ]
            )
        return [
            Delivery(
                *(delivery, tenant, subject, event, url, body, int(since_queued), int(total)),
                *(bool(forced), int(now_s), bool(hung)),
            )
            for delivery, tenant, subject, event, url, body, since_queued, total, forced, now_s, hung in zip(
                *[iter(flat)] * 11, strict=True
            )
        ]

    def keep_body(self, delivery: Delivery, body: str) -> str:
        """Store the bytes that every attempt sends; return those stored first."""
        with redis_errors():
            return str(self._body(args=[delivery.id, body, self._retention_ms])) or body

    def ended(
        self, delivery: Delivery, state: DeliveryState, attempt: DeliveryAttempt | None = None, *, detail: str = ""
    ) -> None:
        """Record that a webhook arrived, or need not be sent again; 410 disables its endpoint, 2xx enables it."""
        self._note(delivery, state, attempt, detail, delay_s=0)

    def postponed(self, delivery: Delivery, delay_s: float, attempt: DeliveryAttempt | None = None) -> None:
        """Record that a webhook did not arrive and must be sent again after ``delay_s``."""
        self._note(delivery, DeliveryState.WAITING, attempt, "", delay_s=delay_s)

    def _note(
        self, delivery: Delivery, state: DeliveryState, attempt: DeliveryAttempt | None, detail: str, delay_s: float
    ) -> None:
        with redis_errors():
            self._attempted(
                args=[
                    delivery.id,
                    delivery.attempts_total,
                    attempt.model_dump_json(exclude_none=True) if attempt else "",
                    _health(attempt),
                    state,
                    detail,
                    int(delay_s * 1000),
                    self._breaker.failures,
                    int(self._breaker.first_s * 1000),
                    DISABLED_S * 1000 if attempt and attempt.status == 410 else 0,
                    self._retention_ms,
                    self._pace(attempt),
                ]
            )

    def _pace(self, attempt: DeliveryAttempt | None) -> str:
        if attempt is None or not _was_sent(attempt):
            return ""
        quick = attempt.duration_s < self._breaker.quick_s
        if attempt.status is None:
            return "other" if quick else "hung"
        return "quick" if quick else "other"

    # The owner's side.

    def read(self, delivery_id: str, tenant: str) -> DeliveryRecord | None:
        """Return a webhook, or None if the tenant has none with this id, or it has expired."""
        return next(iter(self._read([delivery_id], tenant)), None)

    def of(self, subject: str, tenant: str) -> list[DeliveryRecord]:
        """Return the webhooks about a job or a batch, oldest first."""
        with redis_errors():
            ids = cast("list[str]", self._redis.lrange(f"mf:told:{subject}", 0, -1))
        return self._read(ids, tenant)

    def redeliver(self, delivery_id: str, tenant: str) -> Redelivered:
        """Queue a webhook again, at once and with its schedule restarted; its id and its bytes stay the same.

        It is sent even if its endpoint is disabled or its host paused; a 2xx response enables the endpoint again.
        Raises TooManyRedeliveries.
        """
        with redis_errors():
            _, reply = self._redeliver(args=[tenant, "", "", MAX_REDELIVERED, delivery_id])
        if reply == Redelivered.OVER_BUDGET:
            raise self._over_budget(tenant)
        return Redelivered(reply)

    def redeliver_range(
        self,
        tenant: str,
        since: datetime,
        until: datetime,
        *,
        only_failed: bool = True,
        limit: int = MAX_REDELIVERED,
    ) -> RangeRedelivered:
        """Queue again the webhooks created in a time range, both ends included, oldest first.

        only_failed: those refused, given up or not sent to a disabled endpoint; otherwise also those delivered, unless
        such a call had them sent within the last hour.  Those that wait are sent anyway, and dropped ones stay dropped.
        They wait their turn, behind breakers and 410s.  Raises TooManyRedeliveries if none may be queued now.
        """
        states = FAILED_STATES if only_failed else (*FAILED_STATES, DeliveryState.DELIVERED)
        call = uuid.uuid4().hex
        queued: list[str] = []
        offset = 0
        with redis_errors():
            while len(queued) < limit:
                ids = cast(
                    "list[str]",
                    self._redis.zrange(
                        f"mf:deliveries:{tenant}",
                        _ms(since),
                        _ms(until),
                        byscore=True,
                        offset=offset,
                        num=min(_PAGE, limit - len(queued)),
                    ),
                )
                if not ids:
                    break
                flat = self._redeliver(args=[tenant, call, f",{','.join(states)},", MAX_REDELIVERED, *ids])
                replies = tuple(zip(flat[::2], flat[1::2], strict=True))
                queued += (delivery for delivery, reply in replies if reply == Redelivered.QUEUED)
                # The script removed those whose record has expired.
                offset += sum(reply != Redelivered.UNKNOWN for _, reply in replies)
                if any(reply == Redelivered.OVER_BUDGET for _, reply in replies):
                    if not queued:
                        raise self._over_budget(tenant)
                    return RangeRedelivered(tuple(queued), more=True)
        return RangeRedelivered(tuple(queued), more=len(queued) >= limit)

    def _over_budget(self, tenant: str) -> TooManyRedeliveries:
        with redis_errors():
            left_ms = self._redis.pttl(f"mf:redelivered:{tenant}")
        return TooManyRedeliveries(MAX_REDELIVERED, max(1, math.ceil(left_ms / 1000)))

    def ping(self, tenant: str, url: str, body: str) -> str:
        """Queue a test webhook; return its id.  It is sent once, even to a disabled endpoint."""
        delivery_id = f"msg_ping_{uuid.uuid4().hex}"
        with redis_errors():
            self._ping(args=[delivery_id, tenant, url, body])
        return delivery_id

    # For monitoring.

    def waiting(self) -> int:
        """Count the webhooks still to be sent."""
        with redis_errors():
            return self._redis.zcard("mf:deliveries")

    def _read(self, ids: Iterable[str], tenant: str) -> list[DeliveryRecord]:
        wanted = tuple(ids)
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for delivery_id in wanted:
                pipeline.hgetall(f"mf:delivery:{delivery_id}")
                pipeline.lrange(f"mf:tries:{delivery_id}", 0, -1)
            found = pipeline.execute()
        records = []
        for delivery_id, fields, tries in zip(wanted, found[::2], found[1::2], strict=True):
            if fields.get("tenant") != tenant:
                continue
            try:
                records.append(DeliveryRecord.from_fields(delivery_id, fields, tries))
            except RecordUnreadable as error:  # it must not hide the others
                logger.error("record_unreadable", delivery_id=delivery_id, detail=error.detail)
        return records


def _health(attempt: DeliveryAttempt | None) -> str:
    if attempt is None or not _was_sent(attempt):
        return ""
    return "failed" if attempt.host_failed else "well"


def _was_sent(attempt: DeliveryAttempt) -> bool:
    return attempt.status is not None or (attempt.outcome != "refused" and attempt.error != UNREADABLE)


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)
