"""gunicorn's configuration: ``gunicorn --config python:maskfleet.api.server "maskfleet.api.app:create_app()"``.

gunicorn reads its settings from the names below; options on its command line override them.  This runs in the master,
whose modules its workers inherit: it imports nothing that opens connections.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from maskfleet.jobs.logs import configure_logs, get_logger, without_tokens
from maskfleet.jobs.metrics_folder import MetricsFolder
from maskfleet.jobs.settings import ApiSettings

#: Where prometheus_client keeps the metrics of several processes.
_FIGURES = "PROMETHEUS_MULTIPROC_DIR"
#: Threads of each process for what would stop its event loop.  They share Python's lock with it, so more would be no
#: faster, and would delay it more; with one, an image that takes seconds would hold up all others.
_COMPUTING_AT_ONCE = 2

_settings = ApiSettings()


class _WithoutTokens(logging.Filter):
    """Takes tokens out of gunicorn's lines, which show the URLs of requests that broke or made no sense."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_tokens(record.getMessage()), ()
        return True


class StructuredLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Sends gunicorn's own log lines to the same handler as all others."""

    def setup(self, cfg: Any) -> None:  # Any: gunicorn ships no types
        super().setup(cfg)
        configure_logs(_settings.log_level, program="api")
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.addFilter(_WithoutTokens())


bind = [address for address in (_settings.bind, _settings.metrics_bind) if address]
workers = _settings.processes
worker_class = "maskfleet.api.gevent_worker.Worker"
keepalive = _settings.keepalive_s
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
    if not _ledger_fits():
        raise SystemExit(1)
    if _settings.threads is not None:
        get_logger().warning(
            "setting_not_used", setting="threads", instead="max_held, max_held_per_tenant and max_connections"
        )
    if _FIGURES not in os.environ:
        server.figures = MetricsFolder("api", _settings.metrics_dir)
        os.environ[_FIGURES] = str(server.figures.path)


def post_worker_init(worker: Any) -> None:  # Any: gunicorn ships no types
    """Give the app what belongs to its process: a way to compute aside, and the signal to end."""
    # Imported here: this imports prometheus_client, which looks for its folder on import.
    from gevent.monkey import get_original
    from gevent.threadpool import ThreadPool

    from maskfleet.api.services import EXTENSION, Services
    from maskfleet.jobs.tracing import start_tracing

    start_tracing("api", f"{socket.gethostname()}-{worker.pid}")
    services: Services = worker.wsgi.extensions[EXTENSION]
    services.waits.stop_when(lambda: not worker.alive)
    services.waits.poll_by(get_original("select", "poll"))
    services.cpu.use(ThreadPool(_COMPUTING_AT_ONCE).apply)
    # What the app consists of stays: looking through it for garbage would stop the loop for a tenth of a second.
    gc.collect()
    gc.freeze()


def worker_exit(_server: Any, _worker: Any) -> None:  # Any: gunicorn ships no types
    """Send the spans that were not sent yet."""
    from maskfleet.jobs.tracing import stop_tracing

    stop_tracing()


def child_exit(server: Any, worker: Any) -> None:  # Any: gunicorn ships no types
    """Forget what an ended process was holding."""
    folder: MetricsFolder | None = getattr(server, "figures", None)
    if folder is not None:
        folder.forget(worker.pid)


def on_exit(server: Any) -> None:  # Any: gunicorn ships no types
    """Remove the metrics folder, if it was made here."""
    folder: MetricsFolder | None = getattr(server, "figures", None)
    if folder is not None:
        folder.remove()


def _ledger_fits() -> bool:
    """Check the ledger's version in a process of its own; return False after it has said what is wrong.

    It imports libraries that workers must not import before gevent has replaced the standard library's modules.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    status = 1
    try:
        from maskfleet.jobs.ledger.version import check_at_start

        check_at_start(_settings)
        status = 0
    except SystemExit as error:
        sys.stderr.write(f"{error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)
