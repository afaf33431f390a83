"""Spans that are sent, with OpenTelemetry's SDK; imported only where the environment names a collector."""

from __future__ import annotations

import threading
from contextvars import Context, Token, copy_context
from importlib.metadata import version
from types import TracebackType
from typing import Self

from opentelemetry import context as otel_context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from maskfleet.jobs.errors import JobError, NotFound
from maskfleet.jobs.tracing import Attributes, Kind, Span

#: How long the end of a program waits for a collector; a worker's grace is for its job.
STOP_S = 3.0
_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.SERVER: SpanKind.SERVER,
    Kind.CLIENT: SpanKind.CLIENT,
    Kind.CONSUMER: SpanKind.CONSUMER,
}
_OFF = Span()


class Exporting:
    """The SDK of one process: it sends spans from a thread, in batches, and drops those that are too many."""

    def __init__(self, program: str, instance: str) -> None:
        # Not the library's own shutdown at exit, which waits half a minute for a collector that is gone.
        self._provider = TracerProvider(resource=_resource(program, instance), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("maskfleet")

    def stop(self) -> None:
        stopping = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        stopping.start()
        stopping.join(STOP_S)

    def current(self) -> Span:
        """The span around the caller."""
        found = trace.get_current_span()
        return _SentSpan(found) if found.get_span_context().is_valid else _OFF

    def span(self, name: str, attributes: Attributes | None, kind: Kind, of: str | None, began_ms: int | None) -> Span:
        if of is None:
            around = None
            if not trace.get_current_span().get_span_context().is_valid:
                return _OFF
        else:
            around = set_span_in_context(_remote(of) if of else INVALID_SPAN, otel_context.Context())
        began_ns = None if began_ms is None else began_ms * 1_000_000
        return _SentSpan(self._tracer.start_span(name, around, _KINDS[kind], attributes, start_time=began_ns))

    def context_outside(self) -> Context:
        context = copy_context()
        context.run(otel_context.attach, set_span_in_context(INVALID_SPAN))
        return context


class _SentSpan(Span):
    def __init__(self, made: trace.Span) -> None:
        self._span = made
        self._token: Token[otel_context.Context] | None = None

    @property
    def traceparent(self) -> str:
        of = self._span.get_span_context()
        return f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"

    def __enter__(self) -> Self:
        self._token = otel_context.attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        if isinstance(error, NotFound):  # mostly an answer: nothing is kept of an image yet
            self.note({"error.type": error.code})
        elif isinstance(error, Exception):
            # Not its message, and no stack: they may hold a signed URL.
            self.fail(error.code if isinstance(error, JobError) else type(error).__name__)
        self._span.end()

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, ended_ms: int | None = None) -> None:
        self._span.end(None if ended_ms is None else ended_ms * 1_000_000)

    def context(self) -> Context:
        context = copy_context()
        context.run(otel_context.attach, set_span_in_context(self._span))
        return context


def _remote(traceparent: str) -> trace.Span:
    _, trace_id, span_id, flags = traceparent.split("-")
    return NonRecordingSpan(
        SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    )


def _resource(program: str, instance: str) -> Resource:
    """Describe this program, as far as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do not."""
    own = {"service.name": f"maskfleet-{program}", "service.version": version("maskfleet")}
    if instance:
        own["service.instance.id"] = instance
    return Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect())
