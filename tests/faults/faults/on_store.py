"""Faults of S3, as seen by the programs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

from tests.faults.faults import Effect, Scene
from tests.faults.proxy import Fault, Mode

_BODY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
#: S3's response when overloaded.
BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (
        len(_BODY),
        _BODY,
    )
)


def store_answers_503(scene: Scene) -> Effect:
    return _for_a_while(scene, Fault(Mode.ANSWER, answer=BUSY), 2.0)


def store_slow(scene: Scene) -> Effect:
    return _for_a_while(scene, Fault(Mode.DELAY, delay_s=0.3), 2.5)


def store_answers_are_cut(scene: Scene) -> Effect:
    """Break each connection off after some bytes of the response: in the headers, or in the image."""
    after = scene.random.choice([50, 400, 2_000, 10_000])
    effect = _for_a_while(scene, Fault(Mode.TRUNCATE, after_bytes=after), 2.0)
    return replace(effect, text=f"after {after} bytes, {effect.text}")


def store_gone(scene: Scene) -> Effect:
    """Cut the connection to the store."""
    return _for_a_while(scene, Fault(Mode.BLACKHOLE), 3.0)


def store_killed(scene: Scene) -> Effect:
    """Kill the store and restart it on its data."""
    os.kill(scene.lab.s3_server.pid, signal.SIGKILL)
    status = scene.lab.s3_server.process.wait()
    scene.lab.start_s3_again()
    return Effect(acted=status == -signal.SIGKILL, text="")


def _for_a_while(scene: Scene, fault: Fault, seconds: float) -> Effect:
    scene.lab.s3_way.set(fault)
    time.sleep(seconds)
    met = scene.lab.s3_way.heal()
    return Effect(acted=met > 0, text=f"{seconds:g} s, met {met} times")
