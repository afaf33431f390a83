"""A program's health for an orchestrator: over HTTP, or, a worker's, with ``python -m maskfleet.worker.node.health``.

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


def serve_health(settings: WorkerSettings) -> ThreadingHTTPServer:
    """Serve a worker's ``/live`` and ``/ready`` on ``health_port`` from a thread."""
    client = connect(settings)
    worker_registry, epoch = WorkerRegistry(client), Epoch(client)

    def reason() -> str | None:
        epoch.check()
        own = worker_registry.find(settings.node)
        return why_not_ready([own] if own else [], settings.node, settings.ready_within_s)

    return serve(settings.health_host, settings.health_port, reason)


def serve(host: str, port: int, reason: Callable[[], str | None]) -> ThreadingHTTPServer:
    """Serve ``/live`` and ``/ready`` from a thread.

    reason: returns why the program is not ready, or None if it is; QueueUnavailable says it as well.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/live":
                self._respond(200, "live")
            elif self.path == "/ready":
                found = _reason_or_error(reason)
                self._respond(503 if found else 200, found or "ready")
            else:
                self._respond(404, "There is only /live and /ready.")

        def _respond(self, status: int, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
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
