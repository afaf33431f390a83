"""The fleet under test: its servers and programs, each of which can be killed, frozen, cut off and restarted."""

from __future__ import annotations

import base64
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, cast

import psutil
import redis
import requests

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.servers import Server, free_port, start_redis, start_s3
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests.conftest import ports_in_turn
from tests.faults.history import History
from tests.faults.image_host import ImageHost
from tests.faults.proxy import Proxy
from tests.faults.receiver import HookReceiver
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "models" / "sam-demo"
#: Makes Python load its sitecustomize.py, so that a program's clocks can be set.
CLOCK = ROOT / "tests" / "faults" / "clock"
ACCESS_KEY, SECRET_KEY = "laboratory", "laboratory-secret"
TENANT, API_KEY = "ant", "a-key-of-the-laboratory"
#: Each with its key; some jobs are of the second one.
TENANTS = {TENANT: API_KEY, "bee": "another-key-of-the-laboratory"}
WEBHOOK_MASTER = f"whsec_{base64.b64encode(b'a secret of the laboratory').decode()}"
LEASE_S = 2.0
#: The model name of nodes without a model: see stand_in.py.
STAND_IN = "stand-in"
#: Importing torch and loading the model takes a few seconds of processor time, and both cores may be busy.
NODE_READY_S = 120.0


@dataclass
class Program:
    """One process of the fleet, and its children.  It is supervised like the fleet's nodes: restarted when it exits."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    folder: Path = ROOT
    ended_by_itself: int = 0
    _suspended_s: float = 0.0
    _extra: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def pid(self) -> int:
        with self._lock:  # there is none while it is being restarted
            assert self._process is not None
            return self._process.pid

    def is_running(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def start(self, **extra: str) -> None:
        with self._lock:
            if not self._clock.exists():
                self._clock.write_bytes(struct.pack("d", 0.0))
            clock = {"PYTHONPATH": os.pathsep.join((str(CLOCK), str(self.folder))), "CLOCK_SUSPENDED": str(self._clock)}
            environment = {**self.environment, **clock, **extra}
            self._extra = extra
            self._process = start_child(self.command, env=environment, log=self.log, cwd=self.folder)

    def kill(self) -> None:
        """Kill it and all its children at once; it stays dead until it is started."""
        with self._lock:
            if self._process is not None:
                kill_child(self._process)
                self._process = None

    def restart(self, **extra: str) -> None:
        with self._lock:
            self.kill()
            self.start(**extra)

    def run_with(self, **extra: str) -> None:
        """Restart it, unless it runs with these settings."""
        with self._lock:
            if not self.is_running() or extra != self._extra:
                self.restart(**extra)

    def look(self) -> None:
        """Restart it if it has exited by itself, or was killed without its children."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.ended_by_itself += 1
                self.restart()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it with all its children, and resume afterwards."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGCONT)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Freeze it as with its machine: its monotonic clock stands still meanwhile, so it notices nothing."""
        began = time.monotonic()
        with self.frozen():
            try:
                yield
            finally:
                self._suspended_s += time.monotonic() - began
                with self._clock.open("r+b") as file:
                    file.write(struct.pack("d", self._suspended_s))

    @property
    def _clock(self) -> Path:
        """Return the file that tells the program for how long it was suspended; see clock/sitecustomize.py."""
        return self.log.with_suffix(".suspended")


class Laboratory:
    """Redis, S3, the API, couriers, nodes, a webhook receiver and an image host, each on its own port."""

    def __init__(self, folder: Path, *, nodes: int = 1, stand_ins: int = 2, programs: bool = True) -> None:
        """nodes: with the bundled model.  stand_ins: without one.  programs: False omits our own programs."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._node_names = [*_names("node", nodes), *_names("node-stand-in", stand_ins)]
        self._own_programs = programs
        self.has_models = nodes > 0
        self._exits = ExitStack()
        self.programs: dict[str, Program] = {}
        self.redis_ways: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.history = exits.enter_context(History(self.folder / "history.jsonl"))
            with ports_in_turn():
                self._start_servers(exits)
            secrets = {tenant: tenant_secret(WEBHOOK_MASTER, tenant) for tenant in TENANTS}
            self.receiver = exits.enter_context(HookReceiver(secrets, self.history))
            self.images = exits.enter_context(ImageHost(self.node_pids))
            exits.callback(self._end_programs)
            exits.enter_context(self._kept())
            if self._own_programs:
                self._start_programs()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    # The fleet's state.

    @property
    def nodes(self) -> list[Program]:
        return [program for name, program in self.programs.items() if name.startswith("node")]

    @property
    def couriers(self) -> list[Program]:
        return [program for name, program in self.programs.items() if name.startswith("courier")]

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def ask(
        self, method: str, path: str, *, tenant: str = TENANT, timeout_s: float = 15, **parts: object
    ) -> requests.Response:
        """Send the API a request, over a separate connection."""
        headers = {"Authorization": f"Bearer {TENANTS[tenant]}", "Connection": "close"}
        headers |= cast("dict[str, str]", parts.pop("headers", {}))
        return requests.request(method, self.api_url + path, headers=headers, timeout=timeout_s, **parts)  # type: ignore[arg-type]

    def api_is_ready(self) -> bool:
        try:
            return self.ask("GET", "/ready", timeout_s=3).status_code == 200
        except requests.RequestException:
            return False

    def child_of(self, node: Program) -> int | None:
        """Return the process that holds a node's model; None while there is none."""
        try:
            family = {process.pid for process in psutil.Process(node.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            return None
        return next(
            (seen.pid for seen in self.worker_registry.workers() if seen.node == node.name and seen.pid in family), None
        )

    def node_pids(self) -> set[int]:
        """Return every process of the nodes."""
        pids: set[int] = set()
        for node in self.nodes:
            with suppress(psutil.NoSuchProcess):
                pids |= {process.pid for process in psutil.Process(node.pid).children(recursive=True)}
        return pids

    # Faults.

    def await_nodes(self) -> None:
        wait_until(lambda: all(self.child_of(node) for node in self.nodes), NODE_READY_S, every_s=0.1)

    def start_redis_again(self) -> None:
        """Start Redis on its data and its port, and wait until it has loaded them."""
        self.redis_server = replace(self.redis_server, process=self.redis_server.start())
        wait_until(self._redis_answers, 30)

    def fail_over(self, lag_s: float) -> float:
        """Kill Redis, and go on with a replica that got nothing for the last ``lag_s``; return since when it lagged.

        Every program's address then leads to the replica.
        """
        self._redis_servers += 1
        name = f"redis-{self._redis_servers}"
        replica = start_redis(self.folder / name, log=self.folder / f"{name}.log")
        with _client(self.redis_server) as primary:
            primary.config_set("repl-diskless-sync-delay", 0)
        with _client(replica) as client:
            client.replicaof("127.0.0.1", str(self.redis_server.port))  # not in its options: it may be started again
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 30)
            since = time.time()
            os.kill(replica.process.pid, signal.SIGSTOP)
            time.sleep(lag_s)
            os.kill(self.redis_server.pid, signal.SIGKILL)
            self.redis_server.process.wait()
            os.kill(replica.process.pid, signal.SIGCONT)
            client.replicaof("NO", "ONE")
        self.redis_server, self.redis_folder = replica, self.folder / name
        for way in (self._own_way, *self.redis_ways.values()):
            way.forward_to(replica.port)
        wait_until(self._redis_answers, 30)
        return since

    def start_s3_again(self) -> None:
        """Start S3 on its data and its port, and wait until it serves the bucket."""
        self.s3_server = replace(self.s3_server, process=self.s3_server.start())
        wait_until(self._store_answers, 60, every_s=0.1)

    def _store_answers(self) -> bool:
        try:
            self.store.ping()
        except JobError:
            return False
        return True

    def _redis_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def _start_servers(self, exits: ExitStack) -> None:
        #: The data of the Redis that is in use, and how many replicas took over.
        self.redis_folder, self._redis_servers = self.folder / "redis", 1
        self.redis_server: Server = start_redis(self.redis_folder, log=self.folder / "redis.log")
        exits.callback(lambda: self.redis_server.stop())
        self.s3_server: Server = start_s3(
            self.folder / "s3",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            buckets=("maskfleet",),
            log=self.folder / "s3.log",
        )
        exits.callback(lambda: self.s3_server.stop())
        self.s3_way = exits.enter_context(Proxy(self.s3_server.port))
        for name in ("api", *_names("courier", 2), *self._node_names):
            self.redis_ways[name] = exits.enter_context(Proxy(self.redis_server.port))
        # The laboratory's own connections meet no faults.
        self._own_way = exits.enter_context(Proxy(self.redis_server.port))
        settings = SharedSettings(
            redis_url=f"redis://127.0.0.1:{self._own_way.port}/0",
            s3_endpoint=self.s3_server.url,
            s3_access_key=ACCESS_KEY,
            s3_secret_key=SECRET_KEY,
        )
        self.redis = connect(settings)
        exits.callback(self.redis.close)
        self.ledger = Ledger(self.redis, settings.retention_s)
        self.worker_registry, self.store = WorkerRegistry(self.redis), Store(settings)

    def _start_programs(self) -> None:
        self.api_port = free_port()
        gunicorn = str(Path(sys.executable).parent / "gunicorn")
        command = (gunicorn, "--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()")
        self.add(
            "api",
            command,
            MASKFLEET_BIND=f"127.0.0.1:{self.api_port}",
            MASKFLEET_PROCESSES="1",
            MASKFLEET_RATE_LIMIT="",  # the schedule polls as fast as it can
            MASKFLEET_MODELS=STAND_IN,
        )
        for name in _names("courier", 2):
            self.add(name, (sys.executable, "-m", "maskfleet.worker.courier.courier"))
        for name in self._node_names:
            if "stand-in" in name:
                command, model = (sys.executable, "-m", "tests.faults.stand_in"), f"./{STAND_IN}"
            else:
                command, model = (sys.executable, "-m", "maskfleet.worker"), str(MODEL)
            self.add(name, command, MASKFLEET_NODE=name, MASKFLEET_MODEL=model)
        wait_until(self.api_is_ready, 60, every_s=0.1)
        self.await_nodes()

    def add(self, name: str, command: tuple[str, ...], *, folder: Path = ROOT, **settings: str) -> Program:
        """Start a program that reaches Redis through the proxy of its name.  folder: where its code is."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MASKFLEET_")}
        environment |= {
            "MASKFLEET_REDIS_URL": f"redis://127.0.0.1:{self.redis_ways[name].port}/0",
            "MASKFLEET_S3_ENDPOINT": f"http://127.0.0.1:{self.s3_way.port}",
            "MASKFLEET_S3_ACCESS_KEY": ACCESS_KEY,
            "MASKFLEET_S3_SECRET_KEY": SECRET_KEY,
            "MASKFLEET_MODEL": str(MODEL),
            "MASKFLEET_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in TENANTS.items()),
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER,
            "MASKFLEET_WEBHOOK_SCHEDULE_S": "0,0.3,0.5,1,1,2,2,3,3,5,5,5,5,5,5",
            "MASKFLEET_WEBHOOK_TIMEOUT_S": "1",
            "MASKFLEET_WEBHOOK_BREAKER_S": "0.3",
            "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1",
            "MASKFLEET_LEASE_S": str(LEASE_S),
            "MASKFLEET_BEAT_S": "0.3",
            "MASKFLEET_STOP_GRACE_S": "2",
            "MASKFLEET_DRAIN_GRACE_S": "0.3",
            "MASKFLEET_TICK_S": "0.2",
            "MASKFLEET_CANARY_S": "1",
            "MASKFLEET_READY_WITHIN_S": "6",
            "MASKFLEET_TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        program = Program(name, command, environment, self.folder / f"{name}.log", folder)
        program.start()
        self.programs[name] = program
        return program

    def _end_programs(self) -> None:
        for program in self.programs.values():
            program.kill()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Supervise the programs continuously."""
        over = threading.Event()

        def keep() -> None:
            while not over.wait(0.3):
                for program in list(self.programs.values()):
                    program.look()

        keeper = threading.Thread(target=keep, name="keeper")
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()


def _client(server: Server) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=10)


def _names(what: str, count: int) -> list[str]:
    return [f"{what}-{number}" for number in range(1, count + 1)]
