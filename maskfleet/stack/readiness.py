"""Readiness checks for the parts of the local stack, with the reason if one is not ready."""

from __future__ import annotations

import json
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import requests

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.version import Schema, upgrade
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store


class StackFailed(RuntimeError):
    """The stack did not start; the message says why."""


def check_redis(settings: SharedSettings) -> None:
    """Raise StackFailed unless the configured Redis responds and holds a ledger of this version, or none."""
    try:
        Ledger(connect(settings), settings.retention_s).ping()
    except JobError as error:
        raise StackFailed(f"The Redis of MASKFLEET_REDIS_URL does not respond. {error}") from error
    try:
        Schema(connect(settings)).check()
    except JobError as error:
        raise StackFailed(str(error)) from error


def upgrade_ledger(settings: SharedSettings) -> None:
    """Upgrade the stack's own ledger to this version; raises StackFailed if it is newer."""
    try:
        for _ in upgrade(connect(settings)):
            pass
    except JobError as error:
        raise StackFailed(str(error)) from error


def check_store(settings: SharedSettings) -> None:
    """Raise StackFailed unless the configured store responds and has the bucket."""
    try:
        Store(settings).ping()
    except JobError as error:
        raise StackFailed(
            f"Cannot access the bucket {settings.bucket!r} of the store at MASKFLEET_S3_ENDPOINT. {error}"
        ) from error


def responds(url: str) -> bool:
    """Return True if a GET returns 200."""
    try:
        with requests.Session() as session:
            session.trust_env = False  # the user's proxy must not handle requests within this machine
            return session.get(url, timeout=2).status_code == HTTPStatus.OK
    except requests.RequestException:
        return False


class LogSince:
    """A program's log from the moment this object is created."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size

    def raise_load_failure(self) -> None:
        """Raise StackFailed if the worker logged that its model cannot be loaded, or is wrong; it would retry on."""
        with self._path.open("rb") as log:
            log.seek(self._read)
            lines = log.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in lines[:-1])  # the last one may be incomplete
        for line in lines[:-1]:
            with suppress(ValueError):
                event = json.loads(line)
                if not isinstance(event, dict):
                    continue
                if event.get("event") == "model_not_loaded":
                    raise StackFailed(f"The model {event.get('model')} cannot be loaded: {event.get('detail')}")
                if event.get("event") == "node_withdrawn" and event.get("code") == "model_wrong":
                    raise StackFailed(f"The model fails its test. {event.get('detail')}")
