"""The faults: each a small function that breaks one thing in the laboratory, mends it, and says what it did."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.laboratory import Laboratory


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault acts.  frozen_s: how long Redis is frozen; the others last a few seconds."""

    lab: Laboratory
    random: random.Random
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
