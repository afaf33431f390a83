"""Find the stack that ``maskfleet up`` runs on this machine, by the files in its data folder."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

#: Where the stack stores its ``--json`` line.
STATE_FILE = "stack.json"
#: Where it stores its secrets.
KEYS_FILE = "keys.json"


class _Pids(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    api: int


class LocalServer(BaseModel):
    """A running local stack: its API and key, its Redis and its store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    api_url: str
    api_key: str
    redis_url: SecretStr
    s3_endpoint: str
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    bucket: str
    pids: _Pids

    @property
    def servers(self) -> dict[str, str | SecretStr]:
        """The settings by which a program uses this stack's servers."""
        names = ("redis_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "bucket")
        return {name: getattr(self, name) for name in names}


def local_server(data: Path) -> LocalServer | None:
    """Return the stack running from this data folder; None if there is none."""
    try:
        server = LocalServer.model_validate_json((data / STATE_FILE).read_bytes())
        os.kill(server.pids.api, 0)  # a stack that was killed leaves its file behind
    except (OSError, ValidationError):
        return None
    return server
