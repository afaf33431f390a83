"""Loaded by Python at start-up if this folder is on PYTHONPATH: shifts the process's wall clock by CLOCK_OFF_S.

libfaketime would do it below Python, but breaks sleeping in CPython 3.11 and later (clock_nanosleep with an
absolute time).  time.monotonic(), which measures durations, is left alone.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Self

OFF_S = float(os.environ["CLOCK_OFF_S"])
_right_time, _RightDatetime = time.time, datetime.datetime


class _AnyDatetime(type(_RightDatetime)):  # type: ignore[misc]
    """Makes datetimes created by C code count as instances of the replaced class."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _RightDatetime)


class _WrongDatetime(_RightDatetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(_right_time() + OFF_S, tz)

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _wrong_time() -> float:
    return _right_time() + OFF_S


time.time = _wrong_time
datetime.datetime = _WrongDatetime  # type: ignore[misc]
