"""The courier: tells callers that jobs have ended, and puts right what processes that died left behind.

CPU only.  Several may run: whatever one takes, it takes by a script of the ledger, for a limited time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from jobs.connection import connect
from jobs.deliveries import Deliveries, Delivery
from jobs.errors import JobError, QueueUnavailable
from jobs.events import job_ended
from jobs.ledger import Ledger
from jobs.logs import configure_logs, get_logger
from jobs.outbox import Outbox
from jobs.queue import Publisher
from jobs.settings import CourierSettings
from worker.children import StopSignals
from worker.egress import egress_session
from worker.sweep import Sweep
from worker.webhook import Outcome, Try, send

log = get_logger()

#: Webhooks that are sent at once; a slow receiver holds one of these.
SENDERS = 16
#: A courier reports on what it took within so many of a receiver's time limits, or another courier takes it.
LEASE_TIMEOUTS = 4
#: Even a receiver's own Retry-After and the schedule are spread by this much, so that tries do not come in step.
JITTER = 0.2
#: A courier asks this often at least whether it is its turn to sweep, so that one that ended is soon replaced.
LONGEST_UNASKED_S = 60.0


class Courier:
    """The loop over what is due."""

    def __init__(self, settings: CourierSettings) -> None:
        self._settings = settings
        redis = connect(settings)
        self._ledger = Ledger(redis, settings.retention_s)
        self._outbox = Outbox(redis, settings.republish_s)
        self._deliveries = Deliveries(redis)
        self._publisher = Publisher(settings)
        self._session = egress_session(allow_private=settings.egress_allow_private, ports=settings.egress_ports)
        self._secrets = tuple(secret.get_secret_value() for secret in settings.webhook_secrets)
        self._sweep = Sweep.from_settings(settings)
        self._ask_to_sweep_at = 0.0

    def run(self, is_over: Callable[[], bool]) -> None:
        """Work until ``is_over`` says so; then end the tries under way."""
        lease_s = LEASE_TIMEOUTS * self._settings.webhook_timeout_s
        sending: set[Future[None]] = set()
        # One more than senders: a sweep takes its time, and no webhook waits for it.
        with ThreadPoolExecutor(SENDERS + 1, thread_name_prefix="sender") as senders:
            while not is_over():
                try:
                    self._reap()
                    self._publish()
                    # No more than can be sent at once: what waits here would wait on its lease, and lose a try by it.
                    sending = {future for future in sending if not future.done()}
                    for delivery in self._deliveries.due(SENDERS - len(sending), lease_s=lease_s):
                        sending.add(senders.submit(self._deliver, delivery))
                    if self._sweep_is_due():
                        senders.submit(self._sweep_up, is_over)
                except QueueUnavailable:
                    log.warning("queue_unavailable")
                time.sleep(self._settings.tick_s)

    def _reap(self) -> None:
        reaped = self._ledger.reap(max_attempts=self._settings.max_attempts)
        if reaped.requeued or reaped.failed or reaped.canceled:
            log.warning("leases_ran_out", requeued=reaped.requeued, failed=reaped.failed, canceled=reaped.canceled)
        if reaped.expired:
            log.info("jobs_expired", jobs=reaped.expired)

    def _publish(self) -> None:
        for job_id, queue in self._outbox.due():
            self._publisher.publish(job_id, queue)
            log.info("job_published", job=job_id)

    def _sweep_is_due(self) -> bool:
        every_s, now = self._settings.sweep_s, time.monotonic()
        if every_s == 0 or now < self._ask_to_sweep_at:
            return False
        self._ask_to_sweep_at = now + min(every_s, LONGEST_UNASKED_S)
        return self._sweep.is_due(every_s)

    def _sweep_up(self, is_over: Callable[[], bool]) -> None:
        try:
            folders = sum(1 for _ in self._sweep.run(is_over=is_over))
            log.info("sweep_done", folders=folders)
        except JobError as error:  # Redis or the store is away, or a person sweeps: there is a next time
            log.warning("sweep_broke_off", code=error.code)
        except Exception:  # as in _deliver
            log.exception("sweep_broke")

    def _deliver(self, delivery: Delivery) -> None:
        try:
            record = self._ledger.read(delivery.job_id)
            if record is None:
                self._deliveries.ended(delivery, "the job is forgotten")
                return
            if str(record.status) != str(delivery.event):
                self._deliveries.ended(delivery, "the job was retried")
                return
            event = job_ended(record, self._settings.model_name, self._settings.public_url.rstrip("/"))
            result = send(
                delivery, event.model_dump_json(), self._secrets, self._session, self._settings.webhook_timeout_s
            )
            self._note(delivery, result)
        except QueueUnavailable:
            log.warning("delivery_not_noted", delivery=delivery.id)  # it is due again when its lease ends
        except Exception:  # a sender's thread has no one above it; the delivery is due again when its lease ends
            log.exception("delivery_broke", delivery=delivery.id)

    def _note(self, delivery: Delivery, result: Try) -> None:
        fields = {"delivery": delivery.id, "tries": delivery.tries, "detail": result.detail}
        schedule = self._settings.webhook_schedule_s
        if result.outcome is not Outcome.FAILED:
            self._deliveries.ended(delivery, result.outcome)
            log.info(f"webhook_{result.outcome}", **fields)
        elif delivery.tries >= len(schedule):
            self._deliveries.ended(delivery, "given up")
            log.warning("webhook_given_up", **fields)
        else:
            delay_s = max(schedule[delivery.tries], result.retry_after_s) * random.uniform(1, 1 + JITTER)  # noqa: S311
            self._deliveries.postponed(delivery, delay_s)
            log.info("webhook_postponed", delay_s=delay_s, **fields)


def main() -> None:
    """Run a courier until it is told to stop."""
    settings = CourierSettings()
    configure_logs(settings.log_level, program="courier")
    if not settings.webhook_secrets:
        raise SystemExit("Set MASKFLEET_WEBHOOK_SECRETS: webhooks are signed, and there is nothing to sign them with.")
    signals = StopSignals()
    log.info("courier_started")
    Courier(settings).run(lambda: signals.count > 0)


if __name__ == "__main__":
    main()
