"""The local stack's data folder: its lock, keys, ports and state file."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskfleet.jobs.ledger.api_keys import new_key
from maskfleet.jobs.webhook_secrets import new_master
from maskfleet.stack.discovery import KEYS_FILE, STATE_FILE

#: A log longer than this, in bytes, is moved aside when the stack starts.
LONGEST_LOG = 5 * 2**20


class FolderInUse(RuntimeError):
    """Another stack is running on the folder."""


class StackKeys(BaseModel):
    """The secrets of a local stack, created with its folder."""

    model_config = ConfigDict(frozen=True)

    api_key: str = Field(default_factory=new_key)
    s3_access_key: str = Field(default_factory=lambda: secrets.token_hex(10))
    s3_secret_key: str = Field(default_factory=lambda: secrets.token_hex(20))
    webhook_master_secret: str = Field(default_factory=new_master)


class StackPorts(BaseModel):
    """The ports that a local stack uses if they are free: the defaults, or those of the last run."""

    model_config = ConfigDict(frozen=True)

    api: int = 8000
    #: Not 6379, where the user may run a Redis of their own.
    redis: int = 6380
    s3: int = 8333


Kept = TypeVar("Kept", bound=BaseModel)


class StackFolder:
    """The folder, locked for as long as this object or its process lives.  Raises FolderInUse."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / "logs").mkdir(mode=0o700, exist_ok=True)
        self._lock = lock_file(self.path / "lock", wait=False)
        _close_to_others(self.path)
        self.keys = self._read(KEYS_FILE, StackKeys)
        self.ports = self._read("ports.json", StackPorts)
        self._write(KEYS_FILE, self.keys.model_dump_json())

    def remember_ports(self, ports: StackPorts) -> None:
        self.ports = ports
        self._write("ports.json", ports.model_dump_json())

    def write_state(self, line: str) -> None:
        """Record what runs here, for ``maskfleet submit`` and the like."""
        self._write(STATE_FILE, line)

    def close(self) -> None:
        """Record that nothing runs here any more, and unlock the folder."""
        (self.path / STATE_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def log(self, name: str) -> Path:
        """Return the path of a program's log; an old log that has grown too long is moved aside."""
        path = self.path / "logs" / f"{name}.log"
        with suppress(FileNotFoundError):
            if path.stat().st_size > LONGEST_LOG:
                path.replace(path.with_suffix(".log.1"))
        return path

    def _read(self, name: str, kept: type[Kept]) -> Kept:
        try:
            return kept.model_validate_json((self.path / name).read_bytes())
        except FileNotFoundError:
            return kept()
        except ValidationError as error:
            raise FolderInUse(f"{self.path / name} was not written by `maskfleet up`. Move it away.") from error

    def _write(self, name: str, text: str) -> None:
        """Write a file that only its owner can read, whole or not at all."""
        part = self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
        part.replace(self.path / name)


def _close_to_others(folder: Path) -> None:
    """Take from all but the owner what access they had: earlier versions left images, results and logs readable."""
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):  # it is gone, or is another user's, who started this stack before
            mode = path.lstat().st_mode
            if mode & 0o077 and not stat.S_ISLNK(mode):
                path.chmod(mode & 0o700)


def lock_file(path: Path, *, wait: bool) -> int:
    """Lock a file and return its descriptor; the lock lasts until that is closed or this process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise FolderInUse(
            f"`maskfleet up` is already running on {path.parent}. Use another folder with --data."
        ) from error
    return descriptor
