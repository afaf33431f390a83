"""What the OpenAPI document says of a route, written where the route is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from api.keys import Scope

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "maskfleet_operation"


@dataclass(frozen=True, slots=True)
class Header:
    """A header that a request may carry.  pattern: what it must look like; any text without one."""

    name: str
    description: str
    example: str
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One route.

    scope: what a key must allow to use it; None: no key is needed.
    answers: the model of each good status; None for no JSON body, a media type for another kind of body.
    problems: the codes of each bad status, beside those that every route may answer.
    body: the model of a JSON body; ``takes_job`` and ``takes_batch`` are for the routes whose body is one of those.
    """

    summary: str
    scope: Scope | None
    answers: Mapping[int, type[BaseModel] | str | None]
    problems: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    body: type[BaseModel] | None = None
    takes_job: bool = False
    takes_batch: bool = False
    query: type[BaseModel] | None = None
    headers: tuple[Header, ...] = ()
    description: str = ""


def operation(described: Operation) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Describe a view function."""

    def mark(view: Callable[P, R]) -> Callable[P, R]:
        setattr(view, _MARK, described)
        return view

    return mark


def operation_of(view: Callable[..., object]) -> Operation:
    """Give a view function's description; raises LookupError when it has none."""
    described = getattr(view, _MARK, None)
    if not isinstance(described, Operation):
        raise LookupError(f"{view.__module__}.{view.__qualname__} lacks its @operation.")
    return described
