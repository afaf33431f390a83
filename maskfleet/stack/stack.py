"""The local stack: Redis, S3, the API, the worker and the courier on this machine, run and stopped together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from maskfleet.jobs.buckets import bucket_names
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import SharedSettings, WorkerSettings
from maskfleet.stack.folder import StackFolder, lock_file
from maskfleet.stack.readiness import LogSince, StackFailed, check_redis, check_store, responds, upgrade_ledger
from maskfleet.stack.servers import LOOPBACK, free_port, last_lines, start_redis, start_s3
from maskfleet.stack.settings import TENANT, StackSettings
from maskfleet.stack.welcome import Welcome, part_is_up
from maskfleet.worker.node.device import CPU
from maskfleet.worker.node.names import node_names
from maskfleet.worker.node.supervisor import KeptChild, StopSignals, kill_child, start_child

logger = get_logger()

#: Loading a large model from a cold disk takes a minute or two, downloading it from the hub longer.
READY_DEADLINE_S = 900.0
#: Everything stops within 15 s.  A running job has this long to finish …
DRAIN_S = 8.0
#: … a worker that must then abandon it has this long …
GIVE_UP_S = 1.5
#: … and Redis and S3 have this long to save their data.
SAVE_S = 4.0
#: How often the stack looks at what it started: often beside the times above.
POLL_S = 0.1


class Stopped(Exception):
    """The user stopped the stack before it was ready."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """The command line's options.  ``port`` is the API's; ``program``, how the user calls maskfleet."""

    data: Path
    as_json: bool = False
    model: str = ""
    port: int | None = None
    program: str = "maskfleet"


def run_stack(options: StackOptions, say: Callable[[str], None]) -> int:
    """Run the stack until SIGTERM or SIGINT; return the exit status.

    say: called with a line for each part as it comes up, and how to use the stack once everything responds; with
    ``as_json`` with one line, at the end.
    Raises StackFailed, ServerFailed, NoModel, FolderInUse, after stopping everything that was started.
    """
    signals = StopSignals()
    folder = StackFolder(options.data)
    try:
        settings = StackSettings.read(folder.keys, options.model)
        stack = Stack(folder, settings, signals, _silent if options.as_json else say)
        try:
            stack.start(options.port)
            folder.write_state(stack.line())
            say(stack.line() if options.as_json else stack.welcome(options.program).text())
            stack.keep()
        except Stopped:
            logger.warning("stack_stopped_before_it_was_ready")
        finally:
            stack.stop()
    finally:
        folder.close()
    return 0


def _silent(_line: str) -> None:
    pass


class Stack:
    """The stack's child processes: starts them, keeps them running, stops them.

    say: called with a line for each part as it comes up.
    """

    def __init__(
        self, folder: StackFolder, settings: StackSettings, signals: StopSignals, say: Callable[[str], None] = _silent
    ) -> None:
        self._say = say
        self._began = time.monotonic()
        self._folder = folder
        self._settings = settings
        self._signals = signals
        self._children: dict[str, KeptChild] = {}
        self._redis_url = settings.redis_url or ""
        self._s3_endpoint = settings.s3_endpoint or ""
        self._api_url = ""

    def start(self, port: int | None) -> None:
        """Start everything that the settings do not provide, and wait until a job could run."""
        self._say(f"Starting maskfleet, with its data in {self._folder.path}")
        if self._settings.redis_url is not None:
            check_redis(self._shared())
            self._is_up("Redis", "as set in MASKFLEET_REDIS_URL")
        if self._settings.s3_endpoint is not None:
            check_store(self._shared())
            self._is_up("S3", self._s3_endpoint or "Amazon's")
        # One stack at a time chooses and takes its ports, so that no two choose the same.
        turn = lock_file(Path(tempfile.gettempdir()) / f"maskfleet-{os.getuid()}.lock", wait=True)
        try:
            if port and free_port(preferred=port) != port:
                raise StackFailed(f"Port {port} is taken. Use another --port, or omit it to use a free one.")
            self._start_servers()
            self._start_api(port or free_port(preferred=self._folder.ports.api))
        finally:
            os.close(turn)
        shared = self._shared()
        worker_registry = WorkerRegistry(connect(shared))
        nodes = node_names(CPU, WorkerSettings().slots_per_device)
        for node in nodes:  # an entry left by a stack that was killed must not be mistaken for the new worker
            worker_registry.withdraw(node)
        # Redis and S3 they know themselves.
        deny = ",".join((*self._settings.egress_deny, self._api_url.removeprefix("http://")))
        worker_log = LogSince(self._run("worker", "--devices", "cpu", MASKFLEET_EGRESS_DENY=deny))
        public_url = self._settings.public_url or self._api_url
        self._run("courier", MASKFLEET_PUBLIC_URL=public_url, MASKFLEET_EGRESS_DENY=deny)
        self._await("api", lambda: responds(f"{self._api_url}/ready"))
        self._is_up("API", self._api_url)
        self._is_up("courier", "sends webhooks")
        model = self._settings.environment["MASKFLEET_MODEL"]
        self._say(f"  worker   loads {Path(model).name if Path(model).is_dir() else model} …")

        def worker_announced() -> bool:
            announced = any(worker_registry.find(node) is not None for node in nodes)
            worker_log.raise_load_failure()  # afterwards: a model that fails its test is logged before it is announced
            return announced

        self._await("worker", worker_announced)
        self._is_up("worker", "on the CPU")

    def keep(self) -> None:
        """Restart whatever dies, until a signal says to stop."""
        while not self._signals.count:
            restarted = [name for name, child in self._children.items() if child.look()]
            if restarted:
                self._folder.write_state(self.line())
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop all children: first those that write, then the servers that store what they wrote."""
        stops = self._signals.count
        programs = [self._children[name] for name in ("api", "worker", "courier") if name in self._children]
        for child in programs:
            _send(child, signal.SIGTERM)
        self._await_end(programs, DRAIN_S, stops)
        for child in programs:
            _send(child, signal.SIGTERM)  # on the second one the fleet kills its nodes
        self._await_end(programs, GIVE_UP_S, stops)
        for child in programs:
            kill_child(child.process)
        servers = [self._children[name] for name in ("redis", "s3") if name in self._children]
        for child in servers:
            _send(child, signal.SIGTERM)
        self._await_end(servers, SAVE_S, stops)
        for child in servers:
            kill_child(child.process)

    def line(self) -> str:
        """Describe the stack in one line of JSON."""
        pids = {
            name: self._children[name].process.pid if name in self._children else None
            for name in ("api", "worker", "courier", "redis", "s3")
        }
        line = {
            "api_url": self._api_url,
            "api_key": self._settings.api_key,
            "redis_url": self._redis_url,
            "s3_endpoint": self._s3_endpoint,
            "s3_access_key": self._settings.s3_access_key,
            "s3_secret_key": self._settings.s3_secret_key,
            "bucket": self._settings.bucket,
            "data": str(self._folder.path),
            "pids": pids,
        }
        return json.dumps(line)

    def welcome(self, program: str) -> Welcome:
        """Return what to tell people.  program: how they call maskfleet."""
        settings = self._settings
        return Welcome(
            api_url=self._api_url,
            api_key=settings.api_key,
            photo_uris=tuple(f"{bucket.uri}…" for bucket in settings.allowed_buckets if bucket.is_for(TENANT)),
            s3_endpoint=self._s3_endpoint,
            own_s3=settings.s3_endpoint is None,
            data=self._folder.path,
            model=settings.environment["MASKFLEET_MODEL"],
            program=program,
        )

    def _is_up(self, name: str, where: str) -> None:
        self._say(part_is_up(name, where, time.monotonic() - self._began))

    def _start_servers(self) -> None:
        data, ports = self._folder.path, self._folder.ports
        if self._settings.redis_url is None:
            port = free_port(preferred=ports.redis)
            redis = start_redis(data / "redis", log=self._folder.log("redis"), port=port)
            self._children["redis"] = KeptChild("redis", redis.start, redis.process)
            self._redis_url, ports = redis.url, ports.model_copy(update={"redis": port})
            self._is_up("Redis", redis.url)
            # Nobody else uses this ledger, and nobody could have while its Redis was down.
            upgrade_ledger(self._shared())
        if self._settings.s3_endpoint is None:
            port = free_port(preferred=ports.s3)
            s3 = start_s3(
                data / "s3",
                access_key=self._settings.s3_access_key,
                secret_key=self._settings.s3_secret_key,
                buckets=tuple(dict.fromkeys((self._settings.bucket, *bucket_names(self._settings.allowed_buckets)))),
                log=self._folder.log("s3"),
                port=port,
            )
            self._children["s3"] = KeptChild("s3", s3.start, s3.process)
            self._s3_endpoint, ports = s3.url, ports.model_copy(update={"s3": port})
            self._is_up("S3", s3.url)
        self._folder.remember_ports(ports)

    def _start_api(self, port: int) -> None:
        self._api_url = f"http://{LOOPBACK}:{port}"
        self._run("api", "--host", LOOPBACK, "--port", str(port))
        self._folder.remember_ports(self._folder.ports.model_copy(update={"api": port}))
        self._await("api", lambda: responds(f"{self._api_url}/live"))

    def _run(self, program: str, *arguments: str, **environment: str) -> Path:
        """Start one of maskfleet's own programs; return the path of its log."""
        command = [sys.executable, "-m", "maskfleet", program, *arguments]
        log_path = self._folder.log(program)
        env = {
            **os.environ,
            **self._settings.environment,
            "MASKFLEET_REDIS_URL": self._redis_url,
            "MASKFLEET_S3_ENDPOINT": self._s3_endpoint,
            **environment,
        }

        def start() -> subprocess.Popen[bytes]:
            # Not in the user's folder: a folder named `maskfleet` there would be imported instead of ours.
            return start_child(command, env=env, log=log_path, cwd=self._folder.path)

        self._children[program] = KeptChild(program, start)
        return log_path

    def _shared(self) -> SharedSettings:
        return SharedSettings(
            redis_url=SecretStr(self._redis_url),
            s3_endpoint=self._s3_endpoint,
            s3_access_key=SecretStr(self._settings.s3_access_key),
            s3_secret_key=SecretStr(self._settings.s3_secret_key),
        )

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        child = self._children[name]
        deadline = time.monotonic() + READY_DEADLINE_S
        while not ready():
            if self._signals.count:
                raise Stopped
            if child.process.poll() is not None or time.monotonic() > deadline:
                why = "exited during startup" if child.process.poll() is not None else "is not ready"
                raise StackFailed(f"The {name} {why}. {last_lines(self._folder.log(name))}")
            time.sleep(POLL_S)

    def _await_end(self, children: list[KeptChild], grace_s: float, stops: int) -> None:
        """Wait for children to exit; a further Ctrl-C cuts this short."""
        deadline = time.monotonic() + grace_s
        while any(child.process.poll() is None for child in children):
            if time.monotonic() > deadline or self._signals.count > stops:
                return
            time.sleep(POLL_S / 4)


def _send(child: KeptChild, number: signal.Signals) -> None:
    if child.process.poll() is None:
        child.process.send_signal(number)
