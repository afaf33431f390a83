"""The courier: sends webhooks when jobs end, and recovers what dead processes left behind.

CPU only.  Several may run: each claims its work through a ledger script, for a limited time.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import urlsplit

from structlog.contextvars import bound_contextvars

from maskfleet.jobs.errors import JobError, LedgerVersion, QueueUnavailable, RecordUnreadable
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.clock import Clock
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.deliveries import Breaker, Deliveries, Delivery, Shares
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outages import OutageLog
from maskfleet.jobs.ledger.reconciler import Mended, Reconciler
from maskfleet.jobs.ledger.version import check_at_start
from maskfleet.jobs.ledger.webhook_secrets import WebhookSecrets
from maskfleet.jobs.logs import configure_logs, get_logger
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.batch import BatchRecord
from maskfleet.jobs.schema.delivery import DeliveryAttemptOutcome, DeliveryState, subject_ids
from maskfleet.jobs.schema.events import batch_event, is_true, job_event
from maskfleet.jobs.schema.record import JobRecord, origin_ids
from maskfleet.jobs.settings import LOCAL_API_URL, CourierSettings
from maskfleet.jobs.storage import Store
from maskfleet.jobs.tracing import Kind, Span, span, start_tracing, stop_tracing
from maskfleet.worker.courier.batches import MERGES_AT_ONCE, BatchWork, Begin
from maskfleet.worker.courier.send import Sent, send, unsent
from maskfleet.worker.courier.sweep import Sweep
from maskfleet.worker.egress import egress_session
from maskfleet.worker.node.health import serve
from maskfleet.worker.node.supervisor import StopSignals

logger = get_logger()

#: A receiver that takes longer than this share of the time limit keeps a sender from others, and its tenant gets fewer.
#: A host that hung lately has only so long (docs/decisions/0043-a-webhook-secret-per-tenant.md).
QUICK = 1 / 3
#: The attempts of a webhook that such a host gets less time for; later ones have all of it, so that a receiver that has
#: become slow is not cut off for good.
SHORT_ATTEMPTS = 2
#: How many jobs one run of a script takes back; no script should hold up the others for long.
REAPED_AT_ONCE = 100
#: A claimed delivery is leased for this many webhook timeouts; after that another courier may take it.
LEASE_TIMEOUTS = 4
#: Delays from the schedule and from Retry-After are lengthened by up to this share, so that attempts spread out.
JITTER = 0.2
#: Steps of a comparison of the ledger with its records in one tick: some 2,000 entries, milliseconds of Redis' time.
RECONCILE_STEPS = 10
#: A courier checks at least this often whether to sweep or to reconcile, so that one that exited is soon replaced.
LONGEST_UNASKED_S = 60.0
#: A courier that has done nothing for this long is not ready.
LONGEST_TICK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What a webhook tells.  traceparent, log_ids: of the request that created what it is about; empty if unknown."""

    body: str
    traceparent: str = ""
    log_ids: Mapping[str, str] = field(default_factory=dict)


class Courier:
    """The loop over everything that is due."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        redis = connect(settings)
        self._ledger = Ledger(redis, settings.retention_s)
        self._epoch = Epoch(redis)
        self._clock = Clock(redis)
        self._batches = Batches(redis)
        self._quick_s = QUICK * settings.webhook_timeout_s
        breaker = Breaker(settings.webhook_breaker_failures, settings.webhook_breaker_s, self._quick_s)
        self._deliveries = Deliveries(redis, breaker, settings.retention_s)
        self._bells = Bells(redis, Publisher(settings))
        self._session = egress_session(
            allow_private=settings.egress_allow_private,
            ports=settings.egress_ports,
            networks=settings.egress_allow_networks,
            denied=settings.own_endpoints,
        )
        self._secrets = WebhookSecrets(redis, settings.masters)
        self._shared_secrets = tuple(secret.get_secret_value() for secret in settings.webhook_shared_secrets)
        self._sweep = Sweep.from_settings(settings)
        self._ask_to_sweep_at = 0.0
        self._batch_work = BatchWork(self._ledger, self._batches, Store(settings), self._bells, settings)
        self._at_batches: Future[None] | None = None
        self._reconciler = Reconciler(redis, settings.retention_s)
        self._reconciling: Iterator[Mended] | None = None
        self._mended: Mended = Counter()
        self._ask_to_reconcile_at = 0.0
        #: The tenant of each webhook in flight, and when it was taken.
        self._sending: dict[Future[None], tuple[str, float]] = {}
        self._sent = threading.Event()
        self._outage = OutageLog("tick")
        self._ticked_at = time.monotonic()

    def why_not_ready(self) -> str | None:
        """Return why nothing can be done now, if so; QueueUnavailable says it as well."""
        self._epoch.check()
        since_s = time.monotonic() - self._ticked_at
        if since_s > LONGEST_TICK_S:
            return f"Nothing was checked for {since_s:.0f} s."
        return None

    def run(self, is_over: Callable[[], bool]) -> None:
        """Work until ``is_over`` returns True, then finish the deliveries in flight."""
        # More than the senders: a sweep, the batches and their files take long, and no webhook should wait for them.
        others = 2 + MERGES_AT_ONCE
        with ThreadPoolExecutor(self._settings.webhook_senders + others, thread_name_prefix="sender") as senders:
            next_look = 0.0
            while not is_over():
                try:
                    if time.monotonic() >= next_look:
                        next_look = time.monotonic() + self._settings.tick_s
                        self._epoch.note()
                        self._clock.look()
                        self._reap()
                        self._ring()
                        self._reconcile()
                        if self._sweep_is_due():
                            senders.submit(self._sweep_up, is_over)
                        if self._at_batches is None or self._at_batches.done():
                            self._at_batches = senders.submit(self._work_on_batches, is_over, senders.submit)
                    self._take(senders)
                    self._ticked_at = time.monotonic()
                    self._outage.over()
                except QueueUnavailable as error:
                    self._outage.note(error)
                    self._sent.clear()  # deliveries that end meanwhile are no reason to ask again at once
                except LedgerVersion:
                    raise
                except Exception as error:  # noqa: BLE001  whatever breaks one tick, the next may do its work
                    self._outage.broke(error)
                    self._sent.clear()
                # A sender that becomes free takes what is due without waiting for the next tick.
                self._sent.wait(max(0.0, next_look - time.monotonic()))

    def _take(self, senders: ThreadPoolExecutor) -> None:
        settings = self._settings
        self._sent.clear()
        self._sending = {future: taken for future, taken in self._sending.items() if not future.done()}
        # No more than can be sent at once: a delivery waiting here would use up its lease, and with it an attempt.
        free = settings.webhook_senders - len(self._sending)
        if free == 0:
            return
        now = time.monotonic()
        shares = Shares(
            settings.webhook_per_host,
            settings.webhook_senders,
            sending=Counter(tenant for tenant, _ in self._sending.values()),
            hanging=frozenset(tenant for tenant, taken in self._sending.values() if now - taken >= self._quick_s),
        )
        for delivery in self._deliveries.due(free, lease_s=LEASE_TIMEOUTS * settings.webhook_timeout_s, shares=shares):
            future = senders.submit(self._deliver, delivery)
            self._sending[future] = (delivery.tenant, now)
            future.add_done_callback(lambda _: self._sent.set())

    def _reap(self) -> None:
        """Take back what dead workers held, until nothing is left or the tick is over."""
        until = time.monotonic() + self._settings.tick_s
        while True:
            reaped = self._ledger.reap(max_attempts=self._settings.max_attempts, limit=REAPED_AT_ONCE)
            if reaped.leases:
                logger.warning(
                    "leases_ran_out", requeued=reaped.requeued, failed=reaped.failed, canceled=reaped.canceled
                )
            if reaped.expired:
                logger.info("jobs_expired", jobs=reaped.expired)
            if max(reaped.leases, reaped.expired) < REAPED_AT_ONCE or time.monotonic() > until:
                return

    def _ring(self) -> None:
        """Ring where jobs can be claimed and no bell lies: it was lost, or a delay has passed."""
        for queue, jobs in self._ledger.silent_queues().items():
            self._bells.ring(queue, jobs)
            logger.info("bell_rung", queue=queue, jobs=jobs)

    def _reconcile(self) -> None:
        """Compare a part of the ledger with its records; all of it in turn."""
        every_s, now = self._settings.reconcile_s, time.monotonic()
        if self._reconciling is None:
            if every_s == 0 or now < self._ask_to_reconcile_at:
                return
            self._ask_to_reconcile_at = now + min(every_s, LONGEST_UNASKED_S)
            if not self._reconciler.is_due(every_s):
                return
            self._reconciling, self._mended = self._reconciler.steps(), Counter()
        # If Redis fails meanwhile, the rest is left to the next time.
        steps = list(islice(self._reconciling, RECONCILE_STEPS))
        self._mended.update(sum(steps, Counter()))
        if len(steps) < RECONCILE_STEPS:
            self._reconciling = None
            if self._mended:
                logger.warning("reconciled", **self._mended)

    def _sweep_is_due(self) -> bool:
        every_s, now = self._settings.sweep_s, time.monotonic()
        if every_s == 0 or now < self._ask_to_sweep_at:
            return False
        self._ask_to_sweep_at = now + min(every_s, LONGEST_UNASKED_S)
        return self._sweep.is_due(every_s)

    def _sweep_up(self, is_over: Callable[[], bool]) -> None:
        try:
            folders = sum(1 for _ in self._sweep.run(is_over=is_over))
            logger.info("sweep_done", folders=folders)
        except JobError as error:  # Redis or the store is down, or an operator is sweeping: the next sweep will do
            logger.warning("sweep_broke_off", code=error.code)
        except Exception:  # as in _deliver
            logger.exception("sweep_broke")

    def _work_on_batches(self, is_over: Callable[[], bool], begin: Begin) -> None:
        try:
            self._batch_work.run(is_over, begin)
        except JobError as error:  # Redis is down, as the tick says, too; the batches are due again later
            logger.warning("batches_left", code=error.code)
        except Exception:  # as in _deliver
            logger.exception("batches_broke")

    def _deliver(self, delivery: Delivery) -> None:
        with bound_contextvars(delivery_id=delivery.id, **subject_ids(delivery.subject)):
            try:
                try:
                    told = self._told(delivery)
                except RecordUnreadable as error:  # a courier of the version that wrote it may send it later
                    logger.error("record_unreadable", detail=error.detail)
                    self._note(delivery, unsent(delivery, error))
                    return
                if told is not None:
                    with bound_contextvars(**told.log_ids), self._span(delivery, told.traceparent) as made:
                        secrets = (*(one.text for one in self._secrets.of(delivery.tenant)), *self._shared_secrets)
                        limit_s = self.time_limit_s(delivery)
                        traceparent = made.traceparent or told.traceparent
                        sent = send(delivery, told.body, secrets, self._session, limit_s, traceparent)
                        _note_sent(made, sent)
                        self._note(delivery, sent)
            except QueueUnavailable:
                logger.warning("delivery_not_noted")  # it is due again when its lease ends
            except Exception:  # nothing above this thread would catch it; the delivery is due again when its lease ends
                logger.exception("delivery_broke")

    def time_limit_s(self, delivery: Delivery) -> float:
        """Return how long this attempt may take."""
        short = delivery.hung and not delivery.forced and delivery.attempts_since_queued <= SHORT_ATTEMPTS
        return self._quick_s if short else self._settings.webhook_timeout_s

    def _span(self, delivery: Delivery, traceparent: str) -> Span:
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "server.address": urlsplit(delivery.url).hostname or "",  # no path: it may be a secret
            "maskfleet.delivery_id": delivery.id,
            "maskfleet.try": delivery.attempts_total,
            **{f"maskfleet.{name}": value for name, value in subject_ids(delivery.subject).items()},
        }
        return span(f"webhook {delivery.event}", attributes, kind=Kind.CLIENT, of=traceparent)

    def _told(self, delivery: Delivery) -> _Told | None:
        """Return what to send; if it would no longer be true, drop the webhook and return None."""
        if delivery.forced and delivery.body:
            return _Told(delivery.body)
        of_batch = delivery.subject.startswith("batch_")
        record = self._batches.read(delivery.subject) if of_batch else self._ledger.read(delivery.subject)
        if record is None and delivery.body:  # a short retention must not cut the schedule short
            return _Told(delivery.body)
        if record is None or not _is_true(delivery, record):
            detail = (
                "Its record no longer exists."
                if record is None
                else "Out of date: a job was retried or has ended since."
            )
            self._deliveries.ended(delivery, DeliveryState.DROPPED, detail=detail)
            logger.info("webhook_dropped", detail=detail)
            return None
        body = delivery.body or self._deliveries.keep_body(delivery, self._event(delivery, record))
        return _Told(body, record.traceparent, origin_ids(record))

    def _event(self, delivery: Delivery, record: JobRecord | BatchRecord) -> str:
        base_url = (self._settings.public_url or LOCAL_API_URL).rstrip("/")
        if isinstance(record, BatchRecord):
            return batch_event(record, base_url).model_dump_json()
        return job_event(delivery.event, record, self._settings.model_name, base_url).model_dump_json()

    def _note(self, delivery: Delivery, sent: Sent) -> None:
        attempt, schedule = sent.attempt, self._settings.webhook_schedule_s
        fields = {"try": attempt.number, "status": attempt.status, "error": attempt.error}
        if attempt.outcome is DeliveryAttemptOutcome.DELIVERED:
            self._deliveries.ended(delivery, DeliveryState.DELIVERED, attempt)
            logger.info("webhook_delivered", **fields)
        elif attempt.outcome is DeliveryAttemptOutcome.REFUSED:
            self._deliveries.ended(delivery, DeliveryState.REFUSED, attempt, detail=attempt.detail or "")
            logger.warning("webhook_refused", **fields)
        elif delivery.attempts_since_queued >= len(schedule) or not delivery.subject:  # a ping gets a single attempt
            self._deliveries.ended(
                delivery, DeliveryState.GIVEN_UP, attempt, detail="The last scheduled attempt failed."
            )
            logger.warning("webhook_given_up", **fields)
        else:
            delay_s = max(schedule[delivery.attempts_since_queued], sent.retry_after_s) * random.uniform(1, 1 + JITTER)  # noqa: S311
            self._deliveries.postponed(delivery, delay_s, attempt)
            logger.info("webhook_postponed", delay_s=round(delay_s, 3), **fields)


def _is_true(delivery: Delivery, record: JobRecord | BatchRecord) -> bool:
    if isinstance(record, BatchRecord):  # a retried job reopens its batch, which then completes under a new id
        return record.ended_ms is not None and delivery.id == record.completion_id
    return is_true(delivery.event, record)


def _note_sent(made: Span, sent: Sent) -> None:
    attempt = sent.attempt
    made.note({"maskfleet.outcome": str(attempt.outcome)})
    if attempt.status is not None:
        made.note({"http.response.status_code": attempt.status})
    if attempt.outcome is not DeliveryAttemptOutcome.DELIVERED:
        made.fail(attempt.error or str(attempt.status))


def main() -> None:
    """Run a courier until it is told to stop."""
    settings = CourierSettings()
    configure_logs(settings.log_level, program="courier")
    if not settings.webhook_master_secrets:
        raise SystemExit(
            "Set MASKFLEET_WEBHOOK_MASTER_SECRETS to whsec_ and the base64 of 24 random bytes: each tenant's secret, "
            "which signs its webhooks, is derived from it. MASKFLEET_WEBHOOK_SECRETS, which all receivers shared, is "
            "no longer read; see docs/operations.md, Webhook secrets."
        )
    check_at_start(settings)
    signals = StopSignals()
    courier = Courier(settings)
    if settings.health_port:
        serve(settings.health_host, settings.health_port, courier.why_not_ready)
    start_tracing("courier", socket.gethostname())
    logger.info("courier_started")
    try:
        courier.run(lambda: signals.count > 0)
    finally:
        stop_tracing()


if __name__ == "__main__":
    main()
