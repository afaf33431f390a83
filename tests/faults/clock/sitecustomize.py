"""Loaded by Python at start-up if this folder is on PYTHONPATH: shifts the process's wall clock by CLOCK_OFF_S.

libfaketime would do it below Python, but breaks sleeping in CPython 3.11 and later (clock_nanosleep with an
absolute time).  time.monotonic(), which measures durations, only loses the time for which the machine was suspended,
as on Linux: the number of seconds in the file CLOCK_SUSPENDED, eight bytes.
"""

from __future__ import annotations

import datetime
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Self

OFF_S = float(os.environ.get("CLOCK_OFF_S", "0"))
_right_time, _right_monotonic, _RightDatetime = time.time, time.monotonic, datetime.datetime


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


if OFF_S:
    time.time = _wrong_time
    datetime.datetime = _WrongDatetime  # type: ignore[misc]
if place := os.environ.get("CLOCK_SUSPENDED"):
    with Path(place).open("rb") as file:
        _suspended = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)

    def _monotonic_without_suspension() -> float:
        return _right_monotonic() - float(struct.unpack("d", _suspended[:8])[0])

    time.monotonic = _monotonic_without_suspension
