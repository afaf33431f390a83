"""Celery on Redis: the queues' names, the one task's name, and how a job is published.

A message holds the job's id and nothing else; what it means is in the ledger.
"""

from __future__ import annotations

import re

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import round_robin_cycle

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import tls_options
from maskfleet.jobs.schema.base import JOB_ID
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings

TASK_NAME = "maskfleet.segment"
#: Above the longest run with its model load: recovery belongs to the ledger's lease, not to this.
VISIBILITY_TIMEOUT_S = 3 * 3600


def queue_name(model: str, priority: Priority) -> str:
    """Name the queue of a model and a class, as in ``sam.facebook-sam-vit-base.normal``."""
    return f"sam.{re.sub(r'[^A-Za-z0-9]+', '-', model).strip('-').lower()}.{priority}"


def model_queues(model: str) -> tuple[str, ...]:
    """Name a model's queues, the most urgent first."""
    return tuple(queue_name(model, priority) for priority in Priority)


def more_urgent_queues(queue: str) -> tuple[str, ...]:
    """Name the queues of the same model that workers drain before this one."""
    model, _, priority = queue.rpartition(".")
    return tuple(f"{model}.{other}" for other in list(Priority)[: list(Priority).index(Priority(priority))])


def is_job_id(argument: object) -> bool:
    """Whether this is what a message may name."""
    return isinstance(argument, str) and re.fullmatch(JOB_ID, argument) is not None


def canary_queue(node: str) -> str:
    """Name the queue of a node's own, for the message that proves that it consumes."""
    return f"sam.canary.{node}"


def celery_app(settings: SharedSettings) -> Celery:
    """Make the Celery app that API, courier and workers share.  It connects on first use.

    No result backend (the ledger is the truth; a backend makes publishing hang while Redis is down), JSON
    only, acknowledgement after the work, one message at a time.
    """
    app = Celery("maskfleet", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        broker_transport="maskfleet.jobs.messages:Transport",
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "queue_order_strategy": "maskfleet.jobs.queue:UrgencyCycle",
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            # kombu's own waits would keep whoever publishes for 6 s; a node comes back by Celery's, which are others.
            "max_retries": 1,
            "interval_start": 0,
        },
        task_create_missing_queues=True,
        broker_use_ssl=tls_options(settings) or None,
    )
    return app


class UrgencyCycle(round_robin_cycle):
    """The order in which a worker looks into its queues: always the most urgent first.

    kombu's own strategy ``priority`` keeps the order in which queues were declared; here their names tell it.
    """

    def consume(self, n: int) -> list[str]:
        return sorted(self.items, key=_urgency)[:n]

    def rotate(self, last_used: str) -> str:
        return last_used


def _urgency(queue: str) -> int:
    suffix = queue.rpartition(".")[2]
    return list(Priority).index(Priority(suffix)) if suffix in list(Priority) else -1


class Publisher:
    """Puts jobs' ids into the queue."""

    def __init__(self, settings: SharedSettings) -> None:
        self._app = celery_app(settings)

    def publish(self, job_id: str, queue: str) -> None:
        """Send the message; raises QueueUnavailable at once when Redis does not take it."""
        try:
            self._app.send_task(TASK_NAME, args=[job_id], task_id=job_id, queue=queue, retry=False)
        except (OperationalError, OSError) as error:
            raise QueueUnavailable from error
