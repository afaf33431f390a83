"""Faults of Redis: its connections, its process, its memory."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import cast

import psutil
import requests

from tests.faults.faults import Effect, Scene
from tests.faults.proxy import Fault, Mode
from tests.faults.redis_outages import Outage, busy, disk_fails, no_replicas, read_only


def redis_connections_killed(scene: Scene) -> Effect:
    """Close every connection, as ``CLIENT KILL`` does, a few times."""
    killed = 0
    for _ in range(3):
        killed += int(scene.lab.redis.client_kill_filter(_type="normal", skipme=True))
        time.sleep(0.1)
    return Effect(acted=killed > 0, text=f"{killed} connections")


def redis_connections_reset(scene: Scene) -> Effect:
    """Reset every connection, old and new, for a second."""
    return _for_a_while(scene, Fault(Mode.RESET), 1.0)


def redis_slow(scene: Scene) -> Effect:
    """Delay each packet to and from Redis."""
    return _for_a_while(scene, Fault(Mode.DELAY, delay_s=0.1), 2.5)


def redis_killed(scene: Scene) -> Effect:
    """Kill Redis and restart it from its append-only file."""
    os.kill(scene.lab.redis_server.pid, signal.SIGKILL)
    status = scene.lab.redis_server.process.wait()
    time.sleep(scene.random.uniform(0, 1.5))
    scene.lab.start_redis_again()
    return Effect(acted=status == -signal.SIGKILL, text="")


def redis_frozen(scene: Scene) -> Effect:
    """Freeze Redis for longer than every lease."""
    pid = scene.lab.redis_server.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(scene.frozen_s)
    acted = psutil.Process(pid).status() == psutil.STATUS_STOPPED
    os.kill(pid, signal.SIGCONT)
    return Effect(acted=acted, text=f"{scene.frozen_s:g} s")


def redis_full(scene: Scene) -> Effect:
    """Leave Redis no memory: submits are then refused with 503."""
    client = scene.lab.redis
    client.config_set("maxmemory", 1)
    try:
        answers = [_send_once(scene) for _ in range(3)]
        time.sleep(1.0)
    finally:
        client.config_set("maxmemory", 0)
    return Effect(acted=503 in answers, text=f"submits were answered {answers}")


def redis_fails_over(scene: Scene) -> Effect:
    """Kill Redis, and go on with a replica that lagged: what was written meanwhile is lost."""
    since = scene.lab.fail_over(scene.random.uniform(0.5, 2.0))
    return Effect(acted=True, text=f"lost {time.time() - since:.1f} s", loses_since=since)


def redis_emptied(scene: Scene) -> Effect:
    """Empty Redis while jobs wait and run: all of it is lost, and whoever works on must find out."""
    client = scene.lab.redis
    held = cast(int, client.zcard("mf:leases"))
    client.flushall()
    return Effect(acted=True, text=f"{held} jobs were running", loses_since=0.0)


def redis_without_replicas(scene: Scene) -> Effect:
    """Demand a replica that there is not."""
    return _while_it_lasts(scene, no_replicas, "no_replicas")


def redis_read_only(scene: Scene) -> Effect:
    """Make Redis a replica for a while, as a failover does."""
    return _while_it_lasts(scene, read_only, "read_only")


def redis_disk_fails(scene: Scene) -> Effect:
    """Have Redis fail to save its data."""
    return _while_it_lasts(scene, disk_fails, "disk")


def redis_busy(scene: Scene) -> Effect:
    """Run a script that does not end, and kill it."""
    return _while_it_lasts(scene, busy, "busy")


def _while_it_lasts(scene: Scene, outage: Outage, reason: str, seconds: float = 3.0) -> Effect:
    """Bring about an outage; it acted if the API's readiness check has told of it."""
    told = False
    with outage(scene.lab.redis_server.url, scene.lab.redis_folder):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(requests.RequestException):
                told = told or f"({reason})" in scene.lab.ask("GET", "/ready", timeout_s=3).text
            time.sleep(0.1)
    return Effect(acted=told, text=f"{seconds:g} s")


def _send_once(scene: Scene) -> int:
    """Send a job that must be refused; it is in no history, so a record of it would be reported as surplus."""
    image = {"upload_id": "upl_" + "0" * 32}
    body = {"mode": "box", "image": image, "prompts": [{"box": [1, 1, 9, 9]}]}
    scene.lab.store.put("uploads/ant/upl_" + "0" * 32, b"no image", "image/png")
    try:
        return scene.lab.ask("POST", "/v1/jobs", json=body).status_code
    except requests.RequestException:
        return 0


def _for_a_while(scene: Scene, fault: Fault, seconds: float) -> Effect:
    ways = scene.lab.redis_ways.values()
    for way in ways:
        way.set(fault)
    time.sleep(seconds)
    met = sum(way.heal() for way in ways)
    return Effect(acted=met > 0, text=f"{seconds:g} s, met {met} times")
