"""Traces: a job's way through the programs, sent to an OpenTelemetry collector where the environment names one.

OpenTelemetry's own variables configure it, not settings of ours: OTEL_EXPORTER_OTLP_ENDPOINT and its neighbours.
Without an endpoint nothing of OpenTelemetry is imported (it need not be installed), and a span is one shared object
that does nothing.

A span is part of the trace of what it serves; without one around it, it is not made.  So health checks, canaries and
sweeps make no traces of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import Context, copy_context
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Self

from maskfleet.jobs.logs import get_logger

if TYPE_CHECKING:
    from maskfleet.jobs.otel import Exporting

logger = get_logger()

Attributes = Mapping[str, str | bool | int | float]

#: W3C Trace Context, section 3.2: version, trace id, parent id, flags; a newer version may add more after a dash.
_TRACEPARENT = re.compile(r"((?!ff)[0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Kind(StrEnum):
    """How a span relates to the others of its trace, as OpenTelemetry names it."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    CONSUMER = "consumer"


class Span:
    """A span that is not sent; ``jobs.otel`` has those that are.  Inside ``with``, others are made within it."""

    @property
    def traceparent(self) -> str:
        """What the next program needs to go on with the trace; empty for nothing."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, attributes: Attributes) -> None:
        """Add attributes.  No secrets: neither keys nor signed URLs."""

    def fail(self, code: str) -> None:
        """Mark it as failed."""

    def end(self, ended_ms: int | None = None) -> None:
        """End one that is not used with ``with``.  ended_ms: if that was earlier, in milliseconds since the epoch."""

    def context(self) -> Context:
        """Return a context in which spans are made within this one, for a thread."""
        return copy_context()


_OFF = Span()
#: This process's exporter, as OpenTelemetry has one for a process; None while traces are off.
_exporting: Exporting | None = None


def start_tracing(program: str, instance: str = "") -> None:
    """Start to send spans, if the environment names an endpoint; call once in each process, after it was forked.

    program: as in the logs.  instance: which of several it is, such as a worker's node.
    """
    global _exporting
    if not any(os.environ.get(name) for name in _ENDPOINTS) or _exporting is not None:
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() not in ("", "otlp"):
        return
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        logger.warning("traces_not_sent", reason=f"the protocol {protocol} is not supported; set http/protobuf")
        return
    try:
        from maskfleet.jobs.otel import Exporting
    except ImportError:
        logger.warning("traces_not_sent", reason="OpenTelemetry is not installed: pip install 'maskfleet[otel]'")
        return
    _exporting = Exporting(program, instance)


def stop_tracing() -> None:
    """Send what was not sent yet, within a few seconds, and stop."""
    global _exporting
    if _exporting is not None:
        _exporting.stop()
        _exporting = None


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
    of: str | None = None,
    began_ms: int | None = None,
) -> Span:
    """Begin a span: use it with ``with``, or end it.

    of: the ``traceparent`` that it belongs to, empty for a trace of its own; None for the span around it, without which
    it is not made.  began_ms: if it began earlier, in milliseconds since the epoch.
    """
    return _OFF if _exporting is None else _exporting.span(name, attributes, kind, of, began_ms)


def current() -> Span:
    """Return the span around this; one that is not sent, if there is none."""
    return _OFF if _exporting is None else _exporting.current()


def context_outside() -> Context:
    """Return a copy of this context in which no spans are made."""
    return copy_context() if _exporting is None else _exporting.context_outside()


def read_traceparent(header: str) -> str:
    """Return a caller's ``traceparent`` in the form of version 00; empty if it is none."""
    found = _TRACEPARENT.fullmatch(header.strip()) if len(header) <= 512 else None
    if found is None or (found[1] == "00" and found[5]):
        return ""
    return f"00-{found[2]}-{found[3]}-{found[4]}"
