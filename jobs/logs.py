"""Logging: a constant event name plus fields, as one JSON object per line, or coloured text on a terminal.

Every program uses the API's names for fields: ``job_id``, ``attempt``, ``batch_id``, ``delivery_id``, ``worker``.
Filtering by ``job_id`` shows everything about a job.
"""

from __future__ import annotations

import logging
import re
import sys

import structlog

#: Libraries that log signed URLs and what they sign at level DEBUG.
_TELL_SECRETS = ("urllib3", "botocore", "boto3", "s3transfer")
#: Tokens of web pages, and whatever a URL has in the place of one (api/tokens.py).
_TOKENS = re.compile(r"mft_[A-Za-z0-9_.%-]+|(?<=access_token=)[^&\s'\"]+")


def configure_logs(level: str, *, program: str, **ids: str) -> None:
    """Send this process's logs to stderr; call once, at program start.

    level: a name of the logging module, as in ``INFO``.  program, ids: bound to every line.
    """

    def add_ids(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for name, value in {"program": program, **ids}.items():
            event.setdefault(name, value)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # A logger that keeps its first configuration would keep it in tests that run a command in their own process.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _TELL_SECRETS:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))


def get_logger() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


def without_tokens(text: str) -> str:
    """Return a line of a library that shows URLs without the tokens in them."""
    return _TOKENS.sub("…", text)
