"""The queues on Redis: their names, and the order in which a worker polls them."""

from __future__ import annotations

import re

from kombu.utils.scheduling import round_robin_cycle

from maskfleet.jobs.fleet import OUTPUTS
from maskfleet.jobs.schema.spec import Priority


def queue_name(model: str, priority: Priority) -> str:
    """Return the name of a queue, as in ``sam.facebook-sam-vit-base.normal``."""
    return f"sam.{re.sub(r'[^A-Za-z0-9]+', '-', model).strip('-').lower()}.{priority}"


def model_queues(model: str) -> tuple[str, ...]:
    """Return the names of a model's queues, the most urgent first."""
    return tuple(queue_name(model, priority) for priority in Priority)


def node_queues(model: str, *, outputs: bool) -> tuple[str, ...]:
    """Return the names of the queues that a node drains, the most urgent first.

    outputs: whether it also takes jobs that need no model; of each class, after the model's own.
    """
    served = (model, OUTPUTS) if outputs and model != OUTPUTS else (model,)
    return tuple(queue_name(name, priority) for priority in Priority for name in served)


def is_of_outputs(queue: str) -> bool:
    """Return whether the jobs of a queue need no model."""
    return queue.rpartition(".")[0] == f"sam.{OUTPUTS}"


def served_by(queue: str, model: str) -> str:
    """Return under which name the workers that drain a queue are counted.  model: of the queue's jobs."""
    return OUTPUTS if is_of_outputs(queue) else model


def more_urgent_queues(queue: str) -> tuple[str, ...]:
    """Return the names of the same model's queues that workers drain before this one."""
    model, _, priority = queue.rpartition(".")
    return tuple(f"{model}.{other}" for other in list(Priority)[: list(Priority).index(Priority(priority))])


def canary_queue(node: str) -> str:
    """Return the name of a node's own queue, for the message that proves that the node consumes."""
    return f"sam.canary.{node}"


class UrgencyCycle(round_robin_cycle):
    """The order in which a worker polls its queues: always the most urgent first, and of two the one of its model.

    kombu's own strategy ``priority`` keeps the order in which queues were declared; this one sorts by their names.
    """

    def consume(self, n: int) -> list[str]:
        return sorted(self.items, key=_urgency)[:n]

    def rotate(self, last_used: str) -> str:
        return last_used


def _urgency(queue: str) -> tuple[int, bool]:
    suffix = queue.rpartition(".")[2]
    return list(Priority).index(Priority(suffix)) if suffix in list(Priority) else -1, is_of_outputs(queue)
