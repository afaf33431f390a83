"""The faults: each a small function that breaks one thing in the laboratory, mends it, and says what it did."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.faults.laboratory import Laboratory, Program


@dataclass(frozen=True, slots=True)
class Held:
    """A node that is in the middle of a job.  child: the process that does it."""

    node: Program
    child: int
    job: str

    def kill(self) -> None:
        """Kill the child; its node starts another."""
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault acts.

    hold: sends a job that lasts, and gives the node that took it; None when none did in time.
    frozen_s: how long Redis is frozen; the others last a few seconds.
    """

    lab: Laboratory
    random: random.Random
    hold: Callable[[], Held | None]
    frozen_s: float = 4.0


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A fault, and what it may break: an entry of promises.HARMS.  weight: how often it comes in a schedule."""

    act: Callable[[Scene], str]
    harms: str
    weight: int = 1

    @property
    def name(self) -> str:
        return self.act.__name__
