"""Faults of Celery's messages, which only wake workers up: they may be lost, doubled and late."""

from __future__ import annotations

import time
from typing import cast

from maskfleet.jobs.queue import model_queues
from tests.faults.faults import Effect, Scene
from tests.faults.laboratory import MODEL, STAND_IN

#: How long each bell is lost; jobs that come meanwhile wake nobody.
LOST_S = 2.0
#: The longest job ends within this time, and a node that was killed is back with the bell that it had.
LAST_JOB_S = 30.0
#: Copies of each bell.
COPIES = 30


def bells_lost(scene: Scene) -> Effect:
    """Lose every message for a while, so that nodes are idle and jobs wait."""
    return _lost(scene, time.monotonic() + LOST_S)


def bells_lost_at_the_end(scene: Scene) -> Effect:
    """Lose every message from the last jobs on until no node has had one for a while: no new job will wake it."""
    return _lost(scene, time.monotonic() + LAST_JOB_S, until_idle=True)


def _lost(scene: Scene, until: float, *, until_idle: bool = False) -> Effect:
    client = scene.lab.redis
    lost, busy_at = 0, time.monotonic()
    while time.monotonic() < until and not (until_idle and time.monotonic() > busy_at + LOST_S):
        if until_idle and (client.zcard("mf:leases") or not all(map(scene.lab.child_of, scene.lab.nodes))):
            busy_at = time.monotonic()
        for queue in _queues(scene):
            lost += cast(int, client.llen(queue))
            client.delete(queue)
        time.sleep(0.005)
    waiting = sum(cast(int, client.zcard(f"mf:queued:{queue}")) for queue in _queues(scene))
    return Effect(acted=lost > 0, text=f"{lost} bells, and {waiting} jobs waited")


def bells_doubled(scene: Scene) -> Effect:
    """Put many copies of each message into its list."""
    client = scene.lab.redis
    doubled, until = 0, time.monotonic() + LOST_S
    while time.monotonic() < until and doubled < 10:
        for queue in _queues(scene):
            for bell in cast("list[str]", client.lrange(queue, 0, -1)):
                client.lpush(queue, *[bell] * COPIES)
                doubled += 1
        time.sleep(0.005)
    return Effect(acted=doubled > 0, text=f"{doubled} bells, {COPIES} copies of each")


def _queues(scene: Scene) -> list[str]:
    """Return the lists in which the nodes of the laboratory wait for messages."""
    return [name for model in (STAND_IN, MODEL.name) for name in model_queues(model)]
