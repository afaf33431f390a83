"""gunicorn's configuration: ``gunicorn --config python:maskfleet.api.server "maskfleet.api.app:create_app()"``.

gunicorn reads the names below that are settings of its own; options on its command line win over them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from maskfleet.jobs.ledger.version import check_at_start
from maskfleet.jobs.logs import configure_logs
from maskfleet.jobs.settings import ApiSettings

#: Where prometheus_client keeps the figures of several processes.
_FIGURES = "PROMETHEUS_MULTIPROC_DIR"

_settings = ApiSettings()


class StructuredLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Sends gunicorn's own lines the way of all others."""

    def setup(self, cfg: Any) -> None:  # Any: gunicorn ships no types
        super().setup(cfg)
        configure_logs(_settings.log_level, program="api")
        self.error_log.handlers.clear()
        self.error_log.propagate = True


bind = _settings.bind
workers = _settings.processes
worker_class = "gthread"
threads = _settings.threads
# A load balancer keeps its connections for a minute; the server must not be the first to close them.
keepalive = 75
# Whoever waits for a job's end is let go at once; an image that is just coming in gets this long.
graceful_timeout = 8
timeout = 60
# The workers' heartbeat is a file; a disk that is busy must not look like a worker that hangs.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 — memory, and gunicorn's own name in it
logger_class = StructuredLogger
# The API logs its requests itself, at level debug, with the route in place of the path.
accesslog = None
control_socket_disable = True


def on_starting(server: Any) -> None:  # Any: gunicorn ships no types
    """Look at the ledger's version, and make a folder for the figures of all processes.

    Before any of them imports the library that keeps the figures.
    """
    check_at_start(_settings)
    if _FIGURES not in os.environ:
        os.environ[_FIGURES] = server.figures = tempfile.mkdtemp(prefix="maskfleet-api-")


def post_worker_init(worker: Any) -> None:  # Any: gunicorn ships no types
    """Let go of those who wait as soon as the process is to end."""
    # Here and not above: this imports prometheus_client, which looks for its folder when it is imported.
    from maskfleet.api.services import EXTENSION, Services

    services: Services = worker.wsgi.extensions[EXTENSION]
    services.waits.stop_when(lambda: not worker.alive)


def on_exit(server: Any) -> None:  # Any: gunicorn ships no types
    """Remove the figures' folder, if it was made here."""
    shutil.rmtree(getattr(server, "figures", ""), ignore_errors=True)
