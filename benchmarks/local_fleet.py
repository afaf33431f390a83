"""The whole service as processes of this machine, for benchmarks: Redis, S3, the API, a courier and nodes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

import psutil
import redis

from benchmarks.machine import ROOT
from maskfleet import Client
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import free_port, start_redis, start_s3
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests.faults.proxy import Proxy
from tests.waiting import wait_until

TENANT, BUCKETS = "load", ("maskfleet", "photos")
#: Nodes without a model; see there.
STAND_IN = ("-m", "tests.faults.stand_in")


class CountingProxy(Proxy):
    """A way to S3 on which each request is counted by its method and what it is about."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self.counted: Counter[str] = Counter()

    def saw_request(self, head: bytes) -> None:
        method, target, *_ = head.split(b"\r\n", 1)[0].decode("latin1").split(" ")
        path, _, query = target.partition("?")
        parts = unquote(path).strip("/").split("/")
        about = "list" if "list-type" in query else parts[-1] if parts[-1] == "manifest.json" else "/".join(parts[1:2])
        if parts[0] != BUCKETS[0]:
            about = parts[0]
        if len(parts) > 3 and parts[1] == "embeddings" and parts[3] == "sources":
            about = "embeddings/sources"
        self.counted[f"{method} {about or 'bucket'}"] += 1


class LocalFleet:
    """The service, ready to take jobs.  The programs have their default settings, but no limits for the one caller.

    model, node: of the nodes, and how Python starts one.  counting: whether each program's way to S3 is counted.
    """

    def __init__(
        self,
        exits: ExitStack,
        folder: Path,
        *,
        nodes: int,
        model: str,
        node: tuple[str, ...] = STAND_IN,
        counting: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._exits, self._folder, self._nodes = exits, folder, nodes
        self.model = model.rpartition("/")[2]
        key, api_port = secrets.token_hex(16), free_port()
        server = start_redis(folder / "redis", log=folder / "redis.log")
        exits.callback(server.stop)
        s3_keys = {"access_key": "load", "secret_key": secrets.token_hex(16)}
        s3 = start_s3(folder / "s3", **s3_keys, buckets=BUCKETS, log=folder / "s3.log")
        exits.callback(s3.stop)
        self.redis = redis.Redis.from_url(server.url, decode_responses=True)
        exits.callback(self.redis.close)
        fields = {"redis_url": server.url, "s3_endpoint": s3.url}
        fields |= {f"s3_{name}": value for name, value in s3_keys.items()}
        self.store = Store(SharedSettings(**fields))  # type: ignore[arg-type]  # pydantic makes secrets of them
        self.photos = Store(SharedSettings(**fields, bucket="photos"))  # type: ignore[arg-type]  # likewise
        self.ways = {
            kind: exits.enter_context(CountingProxy(s3.port)) if counting else None
            for kind in ("api", "courier", "node", "caller")
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKFLEET_")}
        self._environment = environment | {
            "MASKFLEET_REDIS_URL": server.url,
            "MASKFLEET_S3_ACCESS_KEY": s3_keys["access_key"],
            "MASKFLEET_S3_SECRET_KEY": s3_keys["secret_key"],
            "MASKFLEET_API_KEYS": f"{TENANT}:{key}",
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": f"whsec_{'A' * 32}",
            "MASKFLEET_MODEL": model,
            "MASKFLEET_MODELS": self.model,
            "MASKFLEET_BIND": f"127.0.0.1:{api_port}",
            "MASKFLEET_PROCESSES": "2",
            "MASKFLEET_RATE_LIMIT": "",
            "MASKFLEET_MAX_JOBS_IN_FLIGHT": "1000000",
            "MASKFLEET_MAX_BACKLOG_S": "0",
            "MASKFLEET_ALLOWED_BUCKETS": "photos",
            "MASKFLEET_LOG_LEVEL": "WARNING",
            "OMP_NUM_THREADS": "1",
            **(settings or {}),
        }
        self._s3_urls = {kind: f"http://127.0.0.1:{way.port}" if way else s3.url for kind, way in self.ways.items()}
        self._environment["MASKFLEET_S3_PUBLIC_ENDPOINT"] = self._s3_urls["caller"]
        gunicorn = str(Path(sys.executable).parent / "gunicorn")
        api = (gunicorn, "--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()")
        self.pids: dict[str, list[int]] = {"redis": [server.pid], "s3": [s3.pid]}
        self._start("api", api)
        self._start("courier", (sys.executable, "-m", "maskfleet.worker.courier.courier"))
        self._node_command = (sys.executable, *node)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.start_nodes()
        self.client = Client(f"http://127.0.0.1:{api_port}", key)
        exits.callback(self.client.close)

    def start_nodes(self) -> None:
        """Start the nodes, after those that ran were killed, and wait until they serve."""
        for process in self._processes:
            kill_child(process)
        self.pids["node"] = []
        self.redis.delete(f"mf:serving:{self.model}")
        self._processes = [
            self._start("node", self._node_command, MASKFLEET_NODE=f"node-{number}") for number in range(self._nodes)
        ]
        wait_until(lambda: self.redis.zcard(f"mf:serving:{self.model}") == self._nodes, 180, every_s=0.5)

    def _start(self, kind: str, command: tuple[str, ...], **own: str) -> subprocess.Popen[bytes]:
        known = self.pids.setdefault(kind, [])
        environment = self._environment | own | {"MASKFLEET_S3_ENDPOINT": self._s3_urls[kind]}
        log = self._folder / f"{kind}-{len(known) + 1}.log"
        process = start_child(command, env=environment, log=log, cwd=ROOT)
        self._exits.callback(kill_child, process)
        known.append(process.pid)
        return process

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each kind of program has used, with its children."""
        return {kind: sum(map(_family_cpu_s, pids)) for kind, pids in self.pids.items()}

    def ended(self) -> int:
        """Return how many jobs have succeeded."""
        return int(self.redis.hget("mf:totals", "succeeded") or 0)


def _family_cpu_s(pid: int) -> float:
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)
