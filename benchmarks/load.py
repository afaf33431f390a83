"""Send 10,000 jobs through an API, a courier and ten worker nodes, and measure what each costs.

    python -m benchmarks.load

Redis, S3, the API (two processes), the courier and the nodes are real processes on this machine with their default
settings; only the model is a stand-in that waits for 40 ms instead of segmenting (tests/faults/stand_in.py).  Jobs are
sent as fast as eight callers can, so that the queue grows to thousands.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.local_fleet import TENANT, LocalFleet
from benchmarks.machine import ROOT, keep, percentile
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.spec import BoxJob, ImageSource
from maskfleet.jobs.storage import result_prefix
from tests.waiting import wait_until

PHOTO = ROOT / "examples" / "coins.png"
CALLERS = 8
#: A queue of this length cannot drain in the time, or nothing works.
LONGEST_S = 1800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        fleet = LocalFleet(exits, Path(folder), nodes=arguments.nodes, model="./stand-in")
        figures = _Load(fleet).run(arguments.jobs)
    keep("load", "python -m benchmarks.load", {"jobs": arguments.jobs, "nodes": arguments.nodes, **figures})


class _Load:
    def __init__(self, fleet: LocalFleet) -> None:
        self._fleet = fleet
        self._redis, self._client = fleet.redis, fleet.client

    def run(self, jobs: int) -> dict[str, object]:
        upload_id = self._client.upload(PHOTO)
        self._send(upload_id)
        wait_until(lambda: self._fleet.ended() == 1, 60)
        commands, cpu_s, memory = self._commands(), self._fleet.cpu_s(), self._memory()
        with self._watched() as seen:
            began = time.monotonic()
            with ThreadPoolExecutor(CALLERS) as callers:
                took_s = list(callers.map(lambda _: self._send(upload_id), range(jobs)))
            accepted_s = time.monotonic() - began
            queued, memory_queued = seen["queued"], self._memory()
            wait_until(lambda: self._fleet.ended() == jobs + 1, LONGEST_S, every_s=0.5)
            ended_s = time.monotonic() - began
        ended_cpu_s = self._fleet.cpu_s()
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
            "s3_objects_per_job": round(
                sum(1 for _ in self._fleet.store.listed(result_prefix(TENANT, ""))) / (jobs + 1), 2
            ),
            "cpu_ms_per_job": {kind: round((ended_cpu_s[kind] - cpu_s[kind]) * 1000 / jobs, 1) for kind in cpu_s},
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


if __name__ == "__main__":
    main()
