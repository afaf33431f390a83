"""Names that this service writes and of which a newer version may write more."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """An enumeration that passes on a name it does not know, as a member that is not listed.

    For what is read back: records, responses, events.  What callers send is checked against the listed members.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        unlisted = str.__new__(cls, value)
        unlisted._name_ = unlisted._value_ = value
        return unlisted
