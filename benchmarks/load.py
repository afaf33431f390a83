"""Send 10,000 jobs through an API, a courier and ten worker nodes, and measure what each costs.

    python -m benchmarks.load

Redis, S3, the API (two processes), the courier and the nodes are real processes on this machine with their default
settings; only the model is a stand-in that waits for 40 ms instead of segmenting (tests/faults/stand_in.py).  Jobs are
sent as fast as eight callers can, so that the queue grows to thousands.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import redis

from benchmarks.machine import ROOT, keep, percentile
from maskfleet import Client
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.spec import BoxJob, ImageSource
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store, result_prefix
from maskfleet.stack.servers import free_port, start_redis, start_s3
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests.waiting import wait_until

PHOTO = ROOT / "examples" / "coins.png"
MODEL, TENANT = "stand-in", "load"
CALLERS = 8
#: A queue of this length cannot drain in the time, or nothing works.
LONGEST_S = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        fleet = _Fleet(exits, Path(folder), arguments.nodes)
        figures = fleet.run(arguments.jobs)
    keep("load", "python -m benchmarks.load", {"jobs": arguments.jobs, "nodes": arguments.nodes, **figures})


class _Fleet:
    def __init__(self, exits: ExitStack, folder: Path, nodes: int) -> None:
        self._key, api_port = secrets.token_hex(16), free_port()
        self._redis_server = start_redis(folder / "redis", log=folder / "redis.log")
        exits.callback(self._redis_server.stop)
        s3_keys = {"access_key": "load", "secret_key": secrets.token_hex(16)}
        self._s3_server = start_s3(folder / "s3", **s3_keys, buckets=("maskfleet",), log=folder / "s3.log")
        exits.callback(self._s3_server.stop)
        self._redis = redis.Redis.from_url(self._redis_server.url, decode_responses=True)
        exits.callback(self._redis.close)
        self._store = Store(
            SharedSettings(
                redis_url=self._redis_server.url,
                s3_endpoint=self._s3_server.url,
                s3_access_key=s3_keys["access_key"],
                s3_secret_key=s3_keys["secret_key"],
            )
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKFLEET_")} | {
            "MASKFLEET_REDIS_URL": self._redis_server.url,
            "MASKFLEET_S3_ENDPOINT": self._s3_server.url,
            "MASKFLEET_S3_ACCESS_KEY": s3_keys["access_key"],
            "MASKFLEET_S3_SECRET_KEY": s3_keys["secret_key"],
            "MASKFLEET_API_KEYS": f"{TENANT}:{self._key}",
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": f"whsec_{'A' * 32}",
            "MASKFLEET_MODEL": f"./{MODEL}",
            "MASKFLEET_MODELS": MODEL,
            "MASKFLEET_BIND": f"127.0.0.1:{api_port}",
            "MASKFLEET_PROCESSES": "2",
            "MASKFLEET_RATE_LIMIT": "",
            "MASKFLEET_MAX_JOBS_IN_FLIGHT": "1000000",
            "MASKFLEET_MAX_BACKLOG_S": "0",
            "MASKFLEET_LOG_LEVEL": "WARNING",
            "OMP_NUM_THREADS": "1",
        }
        gunicorn = str(Path(sys.executable).parent / "gunicorn")
        commands = {
            "api": ((gunicorn, "--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()"),),
            "courier": ((sys.executable, "-m", "maskfleet.worker.courier.courier"),),
            "node": ((sys.executable, "-m", "tests.faults.stand_in"),) * nodes,
        }
        self._pids: dict[str, list[int]] = {"redis": [self._redis_server.pid], "s3": [self._s3_server.pid]}
        for kind, ways in commands.items():
            for number, command in enumerate(ways, 1):
                name = f"{kind}-{number}"
                own = {"MASKFLEET_NODE": name} if kind == "node" else {}
                process = start_child(command, env=environment | own, log=folder / f"{name}.log", cwd=ROOT)
                exits.callback(kill_child, process)
                self._pids.setdefault(kind, []).append(process.pid)
        self._client = Client(f"http://127.0.0.1:{api_port}", self._key)
        exits.callback(self._client.close)
        wait_until(lambda: self._redis.zcard(f"mf:serving:{MODEL}") == nodes, 180, every_s=0.5)

    def run(self, jobs: int) -> dict[str, object]:
        upload_id = self._client.upload(PHOTO)
        self._send(upload_id)
        wait_until(lambda: int(self._redis.hget("mf:totals", "succeeded") or 0) == 1, 60)
        commands, cpu_s, memory = self._commands(), self._cpu_s(), self._memory()
        with self._watched() as seen:
            began = time.monotonic()
            with ThreadPoolExecutor(CALLERS) as callers:
                took_s = list(callers.map(lambda _: self._send(upload_id), range(jobs)))
            accepted_s = time.monotonic() - began
            queued, memory_queued = seen["queued"], self._memory()
            wait_until(lambda: int(self._redis.hget("mf:totals", "succeeded") or 0) == jobs + 1, LONGEST_S, every_s=0.5)
            ended_s = time.monotonic() - began
        ended_cpu_s = self._cpu_s()
        totals = self._redis.hgetall("mf:totals")
        return {
            "accepted_s": round(accepted_s, 1),
            "ended_s": round(ended_s, 1),
            "accepted_per_s": round(jobs / accepted_s, 1),
            "ended_per_s": round(jobs / ended_s, 1),
            "post_ms": {f"p{q}": round(percentile(took_s, q) * 1000, 1) for q in (50, 95, 99)},
            "most_queued": max(queued, seen["queued"]),
            "redis_connections": seen["connections"],
            "redis_commands_per_job": round((self._commands() - commands) / jobs, 1),
            "redis_bytes_per_job_at_the_last_post": round((memory_queued - memory) / jobs),
            "redis_bytes_per_ended_job": round((self._memory() - memory) / jobs),
            "s3_objects_per_job": round(sum(1 for _ in self._store.listed(result_prefix(TENANT, ""))) / (jobs + 1), 2),
            "cpu_ms_per_job": {kind: round((ended_cpu_s[kind] - cpu_s[kind]) * 1000 / jobs, 1) for kind in self._pids},
            "ended_otherwise": sum(int(totals.get(name, 0)) for name in ("failed", "canceled", "expired")),
            "fenced": int(totals.get("fenced", 0)),
            "requeued": int(totals.get("requeued", 0)),
        }

    def _send(self, upload_id: str) -> float:
        began = time.perf_counter()
        image, prompts = ImageSource(upload_id=upload_id), (Prompt(box=(20, 20, 80, 80)),)
        self._client.submit(BoxJob(mode="box", image=image, prompts=prompts, outputs=("coco",)))
        return time.perf_counter() - began

    @contextmanager
    def _watched(self) -> Iterator[dict[str, int]]:
        """Note the longest queue and the most connections."""
        seen, over = {"queued": 0, "connections": 0}, threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                queues = self._redis.smembers("mf:queues")
                queued = sum(int(self._redis.zcard(f"mf:queued:{queue}")) for queue in queues)
                seen["queued"] = max(seen["queued"], queued)
                seen["connections"] = max(seen["connections"], self._redis.info("clients")["connected_clients"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()

    def _commands(self) -> int:
        return int(sum(one["calls"] for one in self._redis.info("commandstats").values()))

    def _memory(self) -> int:
        return int(self._redis.info("memory")["used_memory"])

    def _cpu_s(self) -> dict[str, float]:
        return {kind: sum(map(_family_cpu_s, pids)) for kind, pids in self._pids.items()}


def _family_cpu_s(pid: int) -> float:
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    main()
