"""The faults: each a small function that breaks one thing in the laboratory, repairs it, and reports what it did."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.laboratory import Laboratory, Program

#: Kinds of jobs that take a second or more, and three or more.
LASTING, ENDURING = "many points of a grid", "hundreds of points of a grid"


@dataclass(frozen=True, slots=True)
class Held:
    """A node that is in the middle of a job.

    child: the process running it.  is_at_it: whether the job has not ended yet, and no other node has it.
    """

    node: Program
    child: int
    job: str
    is_at_it: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault acts.

    hold: sends a job of a kind, and returns the node that took it; None if none did in time.
    frozen_s: how long Redis is frozen; the others last a few seconds.
    """

    lab: Laboratory
    random: random.Random
    hold: Callable[[str], Held | None]
    frozen_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Effect:
    """What a fault did.

    acted: whether it hit its target; if not, it has broken nothing.  node: the one whose process it hit,
    empty if it did not hit a single node.  loses_since: Redis lost what was written from then on; None for nothing.
    """

    acted: bool
    text: str
    node: str = ""
    loses_since: float | None = None


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A fault, and what it may break: a key of promises.HARMS.

    weight: how often it comes in a schedule.  fells: whether it kills, freezes or cuts off a process.
    """

    act: Callable[[Scene], Effect]
    harms: str
    weight: int = 1
    fells: bool = False

    @property
    def name(self) -> str:
        return self.act.__name__
