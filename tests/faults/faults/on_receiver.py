"""Faults of those who are told of a job's end."""

from __future__ import annotations

import time

from tests.faults.faults import Scene

#: Long enough that jobs end meanwhile.
LASTS_S = 2.5


def receiver_down(scene: Scene) -> str:
    with scene.lab.receiver.down():
        time.sleep(LASTS_S)
    return f"{LASTS_S:g} s"


def receiver_slow(scene: Scene) -> str:
    """Answer later than the courier waits."""
    with scene.lab.receiver.answering_late():
        time.sleep(LASTS_S)
    return f"{LASTS_S:g} s"


def receiver_answers_500(scene: Scene) -> str:
    with scene.lab.receiver.answering(500):
        time.sleep(LASTS_S)
    return f"{LASTS_S:g} s"


def receiver_answers_410(scene: Scene) -> str:
    """Want no more: those who are told so are not asked again."""
    with scene.lab.receiver.answering(410):
        time.sleep(1.0)
    return "1 s"
