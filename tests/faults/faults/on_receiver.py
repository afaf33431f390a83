"""Faults of webhook receivers."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from tests.faults.faults import Effect, Scene

#: Long enough that jobs end meanwhile.
LASTS_S = 2.5


def receiver_down(scene: Scene) -> Effect:
    return _for_a_while(scene, scene.lab.receiver.down())


def receiver_slow(scene: Scene) -> Effect:
    """Answer later than the courier waits."""
    return _for_a_while(scene, scene.lab.receiver.answering_late())


def receiver_answers_500(scene: Scene) -> Effect:
    return _for_a_while(scene, scene.lab.receiver.answering(500))


def receiver_answers_410(scene: Scene) -> Effect:
    """Answer 410, after which the endpoint must not be called again."""
    return _for_a_while(scene, scene.lab.receiver.answering(410), 1.0)


def _for_a_while(scene: Scene, fault: AbstractContextManager[None], seconds: float = LASTS_S) -> Effect:
    before = scene.lab.receiver.turned_away
    with fault:
        time.sleep(seconds)
    met = scene.lab.receiver.turned_away - before
    return Effect(acted=met > 0, text=f"{seconds:g} s, {met} webhooks")
