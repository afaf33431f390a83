"""The API under gunicorn, as in production."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.api.caller import a_closed_port
from tests.api.conftest import KEYS, MODEL
from tests.waiting import wait_until


@dataclass(frozen=True)
class Door:
    """A running API."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    figures: Path
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, *, body: object = None, timeout: float = 40, **headers: str
    ) -> requests.Response:
        """Send one request over a new connection, so that any process may handle it."""
        headers = {"Authorization": f"Bearer {KEYS['apiary']}", "Connection": "close", **headers}
        return requests.request(method, self.url + path, json=body, headers=headers, timeout=timeout)

    @contextmanager
    def follow(self, job_id: str) -> Iterator[Iterator[Any]]:
        """Yield a job's events, each as its JSON; raises HTTPError if the stream is refused."""
        headers = {"Authorization": f"Bearer {KEYS['apiary']}"}
        with requests.get(f"{self.url}/v1/jobs/{job_id}/events", headers=headers, stream=True, timeout=40) as response:
            if not response.ok:
                assert response.content  # read while the connection is open
            response.raise_for_status()
            lines = response.iter_lines(chunk_size=1)
            yield (json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: "))

    def held(self) -> int:
        """Return how many responses all processes hold."""
        found = re.search(r"^maskfleet_held_responses (\S+)", self.ask("GET", "/metrics").text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    def connect(self, text: str) -> socket.socket:
        """Open a connection, and send the beginning of a request."""
        connection = socket.create_connection((self.host, self.port), timeout=40)
        connection.sendall(text.encode())
        return connection

    def hold(self, job_id: str, wait: str = "", key: str = KEYS["apiary"]) -> socket.socket:
        """Ask for a job's events, or wait for its end, and read nothing."""
        path = f"/v1/jobs/{job_id}" if wait else f"/v1/jobs/{job_id}/events"
        return self.connect(
            f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {key}\r\n"
            f"Prefer: wait={wait or 600}\r\n\r\n"
        )


@contextmanager
def open_door(fields: Mapping[str, str], folder: Path, **changes: str) -> Iterator[Door]:
    """Start the API and yield it when it is ready.  fields: where Redis and S3 are.  changes: a test's own settings."""
    port = a_closed_port()
    log = folder / "api.log"
    settings = {
        **fields,
        "api_keys": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items()),
        "model": MODEL,
        "bind": f"127.0.0.1:{port}",
        "heartbeat_s": "0.2",
        "health_cache_s": "0",
        "metrics_dir": str(folder),
        **changes,
    }
    environment = {**os.environ, **{f"MASKFLEET_{name.upper()}": value for name, value in settings.items()}}
    command = [
        str(Path(sys.executable).parent / "gunicorn"),
        "--config",
        "python:maskfleet.api.server",
        "maskfleet.api.app:create_app()",
    ]
    with log.open("ab") as lines:
        process = subprocess.Popen(command, env=environment, stderr=lines)
    running = Door(process, port, log, folder)
    try:
        wait_until(lambda: _is_ready(running), 30)
        yield running
    finally:
        process.kill()
        process.wait()


def _is_ready(door: Door) -> bool:
    try:
        return door.ask("GET", "/ready").status_code == 200
    except requests.ConnectionError:
        return False
