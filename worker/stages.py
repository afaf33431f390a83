"""The stages of an attempt: how long each takes, for the worker's metrics, and as spans of the job's trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from enum import StrEnum

from maskfleet.jobs import tracing
from maskfleet.worker.output.artifacts import Artifact


class StageName(StrEnum):
    """The stages, in their order; together with the outputs they are most of an attempt."""

    FETCH = "fetch"
    DECODE_IMAGE = "decode_image"
    #: Of workers that share a device, in mode everything.
    WAIT_FOR_DEVICE = "wait_for_device"
    EMBED = "embed"
    DECODE_PROMPTS = "decode_prompts"
    MEASURE = "measure"
    #: Not overlapped by the making of outputs: what is left to wait for.
    UPLOAD = "upload"


class Timings:
    """The seconds that one attempt spent in each stage, and on each output; and how often it halved a batch."""

    def __init__(self) -> None:
        self.stages: dict[StageName, float] = {}
        self.outputs: dict[str, float] = {}
        self.halvings = 0


_timings: ContextVar[Timings | None] = ContextVar("timings", default=None)


@contextmanager
def timed() -> Iterator[Timings]:
    """Collect the timings of what runs meanwhile."""
    timings = Timings()
    token = _timings.set(timings)
    try:
        yield timings
    finally:
        _timings.reset(token)


@contextmanager
def stage(name: StageName) -> Iterator[None]:
    """Time a stage."""
    with tracing.span(name):
        started = time.perf_counter()
        try:
            yield
        finally:
            _add(_timings.get(), name, time.perf_counter() - started)


class Turns:
    """A stage that takes turns with others: its span is from its begin to its end, and says how long it was busy.

    Its turns may be taken in another thread.
    """

    def __init__(self, name: StageName) -> None:
        self._name = name
        self._timings = _timings.get()
        self._busy_s = 0.0
        self._turns = 0
        self._span = tracing.span(name)

    @contextmanager
    def turn(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._busy_s += time.perf_counter() - started
            self._turns += 1

    def context(self) -> Context:
        """Return a context for threads that do its work."""
        return self._span.context()

    def end(self) -> None:
        self._span.note({"maskfleet.busy_s": self._busy_s, "maskfleet.turns": self._turns})
        self._span.end()
        _add(self._timings, self._name, self._busy_s)


@contextmanager
def turns(name: StageName) -> Iterator[Turns]:
    """Begin a stage that takes turns with others, and end it."""
    made = Turns(name)
    try:
        yield made
    finally:
        made.end()


def note_halvings(count: int) -> None:
    """Count batches that did not fit in memory and were halved."""
    if (timings := _timings.get()) is not None:
        timings.halvings += count


def timed_outputs(artifacts: Iterable[Artifact]) -> Iterator[Artifact]:
    """Time the making of outputs; the files of each follow one another."""
    timings, files = _timings.get(), iter(artifacts)
    making: _Output | None = None
    try:
        while True:
            began_at, started = time.time(), time.perf_counter()
            file = next(files, None)
            if file is None:
                return
            name = output_of(file)
            if making is None or making.name != name:
                if making is not None:
                    making.end(timings)
                making = _Output(name, began_at)
            making.busy_s += time.perf_counter() - started
            making.files += 1
            making.ended_at = time.time()
            yield file
            del file  # its upload alone holds it
    finally:
        if making is not None:
            making.end(timings)


def output_of(file: Artifact) -> str:
    """Return the output that a file is of: ``coco``, ``masks`` (one by one, or in an archive), ``label_map``, …"""
    return file.name.partition("/")[0].partition(".")[0]


class _Output:
    """The files of one output: what it is can be said once the first is made."""

    def __init__(self, name: str, began_at: float) -> None:
        self.name = name
        self.busy_s = 0.0
        self.files = 0
        self._began_at = self.ended_at = began_at

    def end(self, timings: Timings | None) -> None:
        attributes = {"maskfleet.busy_s": self.busy_s, "maskfleet.files": self.files}
        made = tracing.span(f"output {self.name}", attributes, began_ms=int(self._began_at * 1000))
        made.end(int(self.ended_at * 1000))
        if timings is not None:
            timings.outputs[self.name] = timings.outputs.get(self.name, 0.0) + self.busy_s


def _add(timings: Timings | None, name: StageName, seconds: float) -> None:
    if timings is not None:
        timings.stages[name] = timings.stages.get(name, 0.0) + seconds
