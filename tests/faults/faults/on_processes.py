"""Faults of our own programs: killed, frozen, cut off from Redis, with a clock that is wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from tests.faults.faults import Scene
from tests.faults.laboratory import LEASE_S, ROOT, Laboratory, Program
from tests.faults.proxy import Fault, Mode
from tests.waiting import wait_until

#: How long a fault waits for the moment that it is made for.
MOMENT_S = 8.0


HOUR_S = 3600
NOBODY = "no node took a job in time"


def child_killed_mid_job(scene: Scene) -> str:
    """Kill the process that holds the model, while it is at a job."""
    held = scene.hold()
    if held is None:
        return NOBODY
    held.kill()
    return f"{held.node.name} was at {held.job}"


def node_killed(scene: Scene) -> str:
    """Kill a node's parent; its child is an orphan until whoever keeps the node clears up and starts it again."""
    held = scene.hold()
    if held is None:
        return NOBODY
    os.kill(held.node.pid, signal.SIGKILL)
    return f"{held.node.name} was at {held.job}"


def node_frozen_past_its_lease(scene: Scene) -> str:
    """Stop a node in the middle of a job for twice its lease; then it wakes up and wants to go on."""
    held = scene.hold()
    if held is None:
        return NOBODY
    with held.node.frozen():
        time.sleep(2 * LEASE_S)
    return f"{held.node.name} was at {held.job}"


def node_cut_off(scene: Scene) -> str:
    """Pull the cable between one node and Redis for longer than its lease."""
    held = scene.hold()
    if held is None:
        return NOBODY
    way = scene.lab.redis_ways[held.node.name]
    way.set(Fault(Mode.BLACKHOLE))
    time.sleep(1.5 * LEASE_S)
    way.heal()
    return f"{held.node.name} was at {held.job}"


def node_drained(scene: Scene) -> str:
    """Tell a node to end in the middle of a job; it is started again when it has."""
    held = scene.hold()
    if held is None:
        return NOBODY
    ending = held.node.pid
    os.kill(ending, signal.SIGTERM)
    with suppress(AssertionError):  # how long it takes is not what is looked at here
        wait_until(lambda: held.node.pid != ending, MOMENT_S)
    return f"{held.node.name} was at {held.job}"


def courier_killed(scene: Scene) -> str:
    """Kill a courier, whatever it is at."""
    courier = scene.random.choice(scene.lab.couriers)
    courier.kill()
    time.sleep(scene.random.uniform(0, 1))
    courier.start()
    return courier.name


def api_killed_between_record_and_publish(scene: Scene) -> str:
    """Kill the API when it has recorded a job and is about to publish it."""
    api = scene.lab.programs["api"]
    effect = _at_publish(scene.lab, api.kill)
    api.restart()
    wait_until(scene.lab.api_is_ready, 60, every_s=0.1)
    return effect


def api_cut_off_at_publish(scene: Scene) -> str:
    """Break the API's connection when it has recorded a job and is about to publish it; the answer is 202 still."""
    return _at_publish(scene.lab, lambda: None)


def courier_clock_off(scene: Scene) -> str:
    """Run a courier whose clock is an hour ahead."""
    return _with_clock_off(scene, scene.random.choice(scene.lab.couriers), HOUR_S)


def api_clock_off(scene: Scene) -> str:
    """Run the API with a clock that is an hour behind."""
    effect = _with_clock_off(scene, scene.lab.programs["api"], -HOUR_S)
    wait_until(scene.lab.api_is_ready, 60, every_s=0.1)
    return effect


def clock_off(seconds: int) -> Mapping[str, str]:
    """Give the variables with which a program's clock is wrong by so much."""
    return {"PYTHONPATH": str(ROOT / "tests" / "faults" / "clock"), "CLOCK_OFF_S": str(seconds)}


def _at_publish(lab: Laboratory, act: Callable[[], object]) -> str:
    """Act when the API sends the command that publishes, before Redis has it; prove that a job is then unpublished."""
    unpublished: list[str] = []

    def reached() -> None:
        act()
        for job in lab.redis.zrange("mf:outbox", 0, -1):
            if lab.redis.hmget(f"mf:job:{job}", "status", "publishes") == ["queued", "0"]:
                unpublished.append(job)

    way = lab.redis_ways["api"]
    way.watch(b"LPUSH", reached)
    try:
        wait_until(lambda: unpublished, MOMENT_S)
    except AssertionError:
        return "nothing was being published"
    finally:
        way.unwatch()
    return f"recorded and not published: {' '.join(unpublished)}"


def _with_clock_off(scene: Scene, program: Program, seconds: int) -> str:
    program.restart(**clock_off(seconds))
    time.sleep(scene.random.uniform(4, 6))
    program.restart()
    return f"{program.name}, {seconds:+} s"
