"""The servers that an operator's command works on: those of the settings, else the local stack's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from maskfleet.cli.server import data_folder, no_stack
from maskfleet.jobs.errors import QueueUnavailable, ServiceError
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.discovery import local_server

_Settings = TypeVar("_Settings", bound=SharedSettings)

#: What an operator can do about a reason of QueueUnavailable.
_REMEDIES = {
    "not_responding": "Is it running? If the service's Redis is another one, set MASKFLEET_REDIS_URL; for a stack of "
    "`maskfleet up --data DIR`, add --data DIR.",
    "credentials": "It refuses the user or password. Put them into MASKFLEET_REDIS_URL: redis://user:password@host:6379/0.",
    "permission": "Its user may not do this. Use one that may, in MASKFLEET_REDIS_URL.",
    "full": "It is full: raise its maxmemory, or delete ended jobs.",
    "read_only": "It is a replica. Name the primary in MASKFLEET_REDIS_URL.",
}


def with_local_stack(settings: _Settings) -> _Settings:
    """Return the settings, with the local stack's servers for those that are not set, or if --data names the stack.

    Raises InvalidRequest (``no_server``) if --data names a folder from which no stack runs.
    """
    folder, is_named = data_folder()
    local = local_server(folder)
    if local is None:
        if is_named:
            raise no_stack(folder)
        return settings
    # Redis and the store go together: one of them alone would be another service's.
    if not is_named and settings.model_fields_set & {"redis_url", "s3_endpoint"}:
        return settings
    return settings.model_copy(update=local.servers)


@contextmanager
def naming_redis(settings: SharedSettings) -> Iterator[None]:
    """Say in each failure of the service which Redis was tried, and what an operator can do."""
    try:
        yield
    except QueueUnavailable as error:
        remedy = _REMEDIES.get(error.reason, "Try again later.")
        raise QueueUnavailable(
            f"The Redis at {_address(settings)} cannot be used ({error.reason}). {remedy}",
            reason=error.reason,
            said=error.said,
        ) from error
    except ServiceError as error:
        error.detail = f"{error.detail} (Redis: {_address(settings)})"
        raise


def _address(settings: SharedSettings) -> str:
    """Return the address without the password."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
