"""An OpenTelemetry collector: it receives spans over HTTP, as OTLP's protobuf, and shows them by trace."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.waiting import wait_until


@dataclass(frozen=True)
class Received:
    """A span, and the program that sent it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    service: str
    instance: str
    began_ns: int
    ended_ns: int
    failed: bool
    attributes: Mapping[str, object]


class Collector:
    """Listen inside ``running``."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collected = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                    collected.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a program send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, name="collector", daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()

    def trace(self, trace_id: str) -> list[Received]:
        """Return the spans of a trace that have arrived, in the order in which they began."""
        bodies = [body for body in list(self.bodies) if bytes.fromhex(trace_id) in body]
        found = [span for body in bodies for span in _spans(body) if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.began_ns)

    def named(self, name: str) -> list[Received]:
        """Return the spans of a name that have arrived, of all traces."""
        return [span for body in list(self.bodies) for span in _spans(body) if span.name == name]

    def wait_for(self, trace_id: str, *names: str, seconds: float = 30) -> list[Received]:
        """Return a trace's spans once one with each of the names has arrived."""
        wait_until(lambda: set(names) <= {span.name for span in self.trace(trace_id)}, seconds, every_s=0.1)
        return self.trace(trace_id)


def _spans(body: bytes) -> Iterator[Received]:
    # Imported here: only tests of traces need it.
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        program = {one.key: one.value.string_value for one in resource.resource.attributes}
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Received(
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                name=span.name,
                kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                service=program["service.name"],
                instance=program.get("service.instance.id", ""),
                began_ns=span.start_time_unix_nano,
                ended_ns=span.end_time_unix_nano,
                failed=span.status.code == Status.STATUS_CODE_ERROR,
                attributes={one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
            )
