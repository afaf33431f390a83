"""Faults of our own programs: killed, frozen, cut off from Redis, or with a wrong clock or wrong credentials."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime

import requests

from tests.faults.faults import ENDURING, LASTING, Effect, Held, Scene
from tests.faults.laboratory import CLOCK, LEASE_S, ROOT, Laboratory, Program
from tests.faults.proxy import Fault, Mode
from tests.waiting import wait_until

#: How long a fault waits for its moment.
MOMENT_S = 8.0
#: A node that is shut down hands its job back and is restarted within this time, even on a busy machine.
DRAINED_S = 20.0
#: A node starts, tests itself and says that it has withdrawn within this time; a model takes a while to load.
WITHDRAWN_S = 60.0
HOUR_S = 3600
NOBODY = Effect(acted=False, text="no node took a job in time")


def child_killed_mid_job(scene: Scene) -> Effect:
    """Kill the process that holds the model during a job."""
    held = scene.hold(LASTING)
    if held is None:
        return NOBODY
    with _stopped(held.child):
        if not held.is_at_it():
            return _too_late(held)
        os.kill(held.child, signal.SIGKILL)
    return _was_at(held)


def node_killed(scene: Scene) -> Effect:
    """Kill a node's parent process; its child is orphaned until the node's supervisor cleans up and restarts it."""
    held = scene.hold(LASTING)
    if held is None:
        return NOBODY
    with _stopped(held.child):
        if not held.is_at_it():
            return _too_late(held)
        os.kill(held.node.pid, signal.SIGKILL)
    return _was_at(held)


def node_frozen_past_its_lease(scene: Scene) -> Effect:
    """Freeze a node mid-job for twice its lease; then it wakes up and tries to continue."""
    held = scene.hold(LASTING)
    if held is None:
        return NOBODY
    with held.node.frozen():
        if not held.is_at_it():
            return _too_late(held)
        time.sleep(2 * LEASE_S)
    return _was_at(held)


def node_suspended_past_its_lease(scene: Scene) -> Effect:
    """Suspend a node's machine mid-job for longer than its lease: by its own clock no time has passed.

    It goes on with a job that another node has by then, and only the ledger can tell it so.  It has done more than half
    of it, so that it would end the job first.
    """
    held = scene.hold(ENDURING)
    if held is None:
        return NOBODY
    try:
        wait_until(lambda: _share_done(scene.lab, held.job) > 0.6 or not held.is_at_it(), MOMENT_S, every_s=0.05)
    except AssertionError:
        return Effect(acted=False, text=f"{held.node.name} had not done enough of {held.job}")
    with held.node.suspended():
        if not held.is_at_it():
            return _too_late(held)
        with suppress(AssertionError):  # others may be busy, or Redis is away: then it is fenced all the same
            wait_until(lambda: _is_at_another(scene.lab, held), LEASE_S + MOMENT_S, every_s=0.05)
    return _was_at(held)


def node_cut_off(scene: Scene) -> Effect:
    """Cut the connection between one node and Redis for longer than its lease."""
    held = scene.hold(LASTING)
    if held is None:
        return NOBODY
    way = scene.lab.redis_ways[held.node.name]
    way.set(Fault(Mode.BLACKHOLE))
    try:
        if not held.is_at_it():
            return _too_late(held)
        time.sleep(1.5 * LEASE_S)
    finally:
        way.heal()
    return _was_at(held)


def node_drained(scene: Scene) -> Effect:
    """Shut a node down mid-job; it is restarted once it has exited."""
    held = scene.hold(LASTING)
    if held is None:
        return NOBODY
    with _stopped(held.child):
        if not held.is_at_it():
            return _too_late(held)
        ending = held.node.pid
        os.kill(ending, signal.SIGTERM)
    with suppress(AssertionError):  # then it has not exited, and that is reported
        wait_until(lambda: held.node.pid != ending, DRAINED_S)
    return _was_at(held) if held.node.pid != ending else Effect(acted=False, text=f"{held.node.name} did not end")


def node_with_wrong_credentials(scene: Scene) -> Effect:
    """Run a node whose secret for the store is not valid, until it has withdrawn; then give it back the right one."""
    node = scene.random.choice(scene.lab.nodes)
    node.restart(MASKFLEET_S3_SECRET_KEY="rotated-away")

    def has_withdrawn() -> bool:
        seen = scene.lab.worker_registry.find(node.name)
        return seen is not None and bool(seen.fault)

    try:
        wait_until(has_withdrawn, WITHDRAWN_S)
        acted = True
    except AssertionError:
        acted = False
    node.restart()
    return Effect(acted=acted, text=node.name, node=node.name)


def courier_killed(scene: Scene) -> Effect:
    """Kill a courier, whatever it is doing."""
    courier = scene.random.choice(scene.lab.couriers)
    ran = courier.is_running()
    courier.kill()
    time.sleep(scene.random.uniform(0, 1))
    courier.start()
    return Effect(acted=ran, text=courier.name)


def api_killed_between_record_and_bell(scene: Scene) -> Effect:
    """Kill the API after it has recorded a job and before it rings for a worker."""
    api = scene.lab.programs["api"]
    effect = _at_bell(scene.lab, api.kill)
    if effect.acted:
        api.start()
        wait_until(scene.lab.api_is_ready, 60, every_s=0.1)
    return effect


def api_cut_off_at_bell(scene: Scene) -> Effect:
    """Break the API's connection after it has recorded a job and before it rings; the response is still 202."""
    return _at_bell(scene.lab, lambda: None)


def courier_clock_off(scene: Scene) -> Effect:
    """Run a courier with its clock an hour ahead."""
    courier = scene.random.choice(scene.lab.couriers)
    return _with_clock_off(scene, courier, HOUR_S, courier.is_running)


def api_clock_off(scene: Scene) -> Effect:
    """Run the API with its clock an hour behind."""

    def is_off() -> bool:
        try:
            date = scene.lab.ask("GET", "/live").headers["Date"]
        except requests.RequestException:  # it has not started in time
            return False
        return time.time() - parsedate_to_datetime(date).timestamp() > HOUR_S / 2

    effect = _with_clock_off(scene, scene.lab.programs["api"], -HOUR_S, is_off)
    wait_until(scene.lab.api_is_ready, 60, every_s=0.1)
    return effect


def clock_off(seconds: int) -> Mapping[str, str]:
    """Return the environment variables that shift a program's clock."""
    return {"PYTHONPATH": os.pathsep.join((str(CLOCK), str(ROOT))), "CLOCK_OFF_S": str(seconds)}


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Suspend a process while checking whether it is still running its job."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _share_done(lab: Laboratory, job: str) -> float:
    done, total = lab.redis.hmget(f"mf:job:{job}", "done", "total")
    return int(done or 0) / int(total or 1)


def _is_at_another(lab: Laboratory, held: Held) -> bool:
    status, worker = lab.redis.hmget(f"mf:job:{held.job}", "status", "worker")
    return status == "processing" and worker != held.node.name


def _was_at(held: Held) -> Effect:
    return Effect(acted=True, text=f"{held.node.name} was at {held.job}", node=held.node.name)


def _too_late(held: Held) -> Effect:
    return Effect(acted=False, text=f"{held.node.name} was at {held.job} no more")


def _at_bell(lab: Laboratory, act: Callable[[], object]) -> Effect:
    """Act when the API rings, before Redis hears it; verify that a job waits then where no bell lies."""
    unheard: list[str] = []
    seen: list[bool] = []

    def reached() -> None:
        for queue in lab.redis.smembers("mf:queues"):
            jobs = lab.redis.zrange(f"mf:queued:{queue}", 0, -1) if lab.redis.llen(queue) == 0 else []
            # One that was handed back has a fence.
            unheard.extend(job for job in jobs if lab.redis.hget(f"mf:job:{job}", "fence") == "0")
        if unheard:
            act()
        seen.append(True)

    way = lab.redis_ways["api"]
    way.watch(b"LPUSH", reached)
    try:
        wait_until(lambda: seen, MOMENT_S)
    except AssertionError:
        return Effect(acted=False, text="nobody was ringing")
    finally:
        way.unwatch()
    return Effect(acted=bool(unheard), text=f"recorded and not heard of: {' '.join(unheard)}")


def _with_clock_off(scene: Scene, program: Program, seconds: int, is_off: Callable[[], bool]) -> Effect:
    program.restart(**clock_off(seconds))
    started = program.pid
    time.sleep(scene.random.uniform(4, 6))
    acted = program.pid == started and is_off()  # it did not exit because of it and restart
    program.restart()
    return Effect(acted=acted, text=f"{program.name}, {seconds:+} s")
