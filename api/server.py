"""gunicorn's configuration: ``gunicorn --config python:maskfleet.api.server "maskfleet.api.app:create_app()"``.

gunicorn reads its settings from the names below; options on its command line override them.
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

#: Where prometheus_client keeps the metrics of several processes.
_FIGURES = "PROMETHEUS_MULTIPROC_DIR"

_settings = ApiSettings()


class StructuredLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Sends gunicorn's own log lines to the same handler as all others."""

    def setup(self, cfg: Any) -> None:  # Any: gunicorn ships no types
        super().setup(cfg)
        configure_logs(_settings.log_level, program="api")
        self.error_log.handlers.clear()
        self.error_log.propagate = True


bind = _settings.bind
workers = _settings.processes
worker_class = "gthread"
threads = _settings.threads
# A load balancer keeps connections open for a minute; the server must not be the first to close them.
keepalive = 75
# The app itself reads X-Forwarded-For and -Proto, from as many proxies as trusted_proxies says.  By default gunicorn
# would believe the latter from any program on this machine, and from all that reach it over a UNIX socket.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
# Requests that wait for a job to end are released at once; an upload in progress gets this long.
graceful_timeout = 8
timeout = 60
# The workers' heartbeat is a file; a busy disk must not look like a hung worker.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 — memory, and gunicorn's own name in it
logger_class = StructuredLogger
# The API logs its requests itself, at level debug, with the route instead of the path.
accesslog = None
control_socket_disable = True


def on_starting(server: Any) -> None:  # Any: gunicorn ships no types
    """Check the ledger's version, and make a folder for the metrics of all processes.

    This must happen before any of them imports prometheus_client.
    """
    check_at_start(_settings)
    if _FIGURES not in os.environ:
        os.environ[_FIGURES] = server.figures = tempfile.mkdtemp(prefix="maskfleet-api-")


def post_worker_init(worker: Any) -> None:  # Any: gunicorn ships no types
    """Release held requests as soon as the process is told to end."""
    # Imported here: this imports prometheus_client, which looks for its folder on import.
    from maskfleet.api.services import EXTENSION, Services

    services: Services = worker.wsgi.extensions[EXTENSION]
    services.waits.stop_when(lambda: not worker.alive)


def on_exit(server: Any) -> None:  # Any: gunicorn ships no types
    """Remove the metrics folder, if it was made here."""
    shutil.rmtree(getattr(server, "figures", ""), ignore_errors=True)
