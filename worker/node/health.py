"""A program's health for an orchestrator: over HTTP, or, a worker's, with ``python -m maskfleet.worker.node.health``.
A worker's metrics are beside it.

Being alive is not enough.  A worker is ready if its model is loaded and a message has reached it recently, be it a
job or the canary that it sends itself.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from maskfleet.jobs.errors import JobError, QueueUnavailable
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.settings import WorkerSettings

#: Prometheus, "Exposition formats".
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def why_not_ready(workers: list[WorkerSeen], node: str, ready_within_s: float) -> str | None:
    """Return why a node is not ready, or None if it is.

    node: a node's name, or a suffix such as ``@host`` for any node of a machine.
    """
    own = [worker for worker in workers if worker.node.endswith(node)]
    if not own:
        return "The worker has not announced itself recently; its model may still be loading."
    if all(worker.fault for worker in own):
        return f"The worker has withdrawn until its self-test passes: {own[0].fault}"
    idle_s = min(worker.consumed_s_ago for worker in own)
    if idle_s > ready_within_s:
        return f"No message has reached the worker for {idle_s} s."
    return None


def serve_health(settings: WorkerSettings, metrics: Callable[[], bytes] | None = None) -> ThreadingHTTPServer:
    """Serve a worker's ``/live``, ``/ready`` and, with ``metrics``, ``/metrics`` on ``health_port`` from a thread."""
    client = connect(settings)
    worker_registry, epoch = WorkerRegistry(client), Epoch(client)

    def reason() -> str | None:
        epoch.check()
        own = worker_registry.find(settings.node)
        return why_not_ready([own] if own else [], settings.node, settings.ready_within_s)

    return serve(settings.health_host, settings.health_port, reason, metrics)


def serve(
    host: str, port: int, reason: Callable[[], str | None], metrics: Callable[[], bytes] | None = None
) -> ThreadingHTTPServer:
    """Serve ``/live``, ``/ready`` and, with ``metrics``, ``/metrics`` from a thread.

    reason: returns why the program is not ready, or None if it is; QueueUnavailable says it as well.
    metrics: returns them in Prometheus' text format.
    """
    paths = "/live and /ready" if metrics is None else "/live, /ready and /metrics"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/live":
                self._respond(200, "live")
            elif self.path == "/ready":
                found = _reason_or_error(reason)
                self._respond(503 if found else 200, found or "ready")
            elif self.path == "/metrics" and metrics is not None:
                self._send(200, metrics(), PROMETHEUS_TEXT)
            else:
                self._respond(404, f"There is only {paths}.")

        def _respond(self, status: int, text: str) -> None:
            self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Log nothing: probes arrive every few seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


def _reason_or_error(reason: Callable[[], str | None]) -> str | None:
    try:
        return reason()
    except QueueUnavailable as error:
        return f"{error.code} ({error.reason}): {error.detail}"
    except JobError as error:
        return str(error)


def main() -> None:
    settings = WorkerSettings()
    client = connect(settings)

    def reason() -> str | None:
        Epoch(client).check()
        host = socket.gethostname()
        return why_not_ready(WorkerRegistry(client).workers(host), f"@{host}", settings.ready_within_s)

    if found := _reason_or_error(reason):
        sys.exit(found)


if __name__ == "__main__":
    main()
