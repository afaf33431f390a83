"""Measure how fast the API accepts jobs: POST to 202 with 1 and with 32 clients, jobs per second, and its memory.

    python -m benchmarks.submit

A real Redis, a real S3 and the API under gunicorn run on this machine, and so does the load generator: one process of
threads, each with its own connection and bodies of about 200 bytes.  No worker runs, so only the API is
measured.  The first requests of each run are not counted.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.machine import keep, percentile, spread
from maskfleet.stack.servers import free_port, start_redis, start_s3

KEY = "benchmark-key"
BODY = json.dumps({"mode": "point", "image": {"s3_uri": "s3://photos/bee.jpg"}, "prompts": [{"points": [[10, 10]]}]})
WARM_UP = 50
RUNS = 5


@contextmanager
def running_api(folder: Path, **settings: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run Redis, S3 and the API, with settings of a benchmark's own; yield the API's port and process."""
    redis = start_redis(folder / "redis", log=folder / "redis.log")
    s3 = start_s3(folder / "s3", access_key="a" * 8, secret_key="b" * 16, buckets=("maskfleet",), log=folder / "s3.log")
    port = free_port()
    environment = os.environ | {
        "MASKFLEET_REDIS_URL": redis.url,
        "MASKFLEET_S3_ENDPOINT": s3.url,
        "MASKFLEET_S3_ACCESS_KEY": "a" * 8,
        "MASKFLEET_S3_SECRET_KEY": "b" * 16,
        "MASKFLEET_API_KEYS": f"bench:{KEY}",
        "MASKFLEET_ALLOWED_BUCKETS": "photos",
        "MASKFLEET_MAX_JOBS_IN_FLIGHT": "1000000",
        # Counted, but never reached.
        "MASKFLEET_RATE_LIMIT": "1000000/minute",
        "MASKFLEET_LOG_LEVEL": "WARNING",
        **{f"MASKFLEET_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "maskfleet", "api", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "api.log").open("w") as log:
        api = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until_ready(port)
        yield port, psutil.Process(api.pid)
    finally:
        api.terminate()
        api.wait(20)
        redis.stop()
        s3.stop()


def until_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the API is not ready")


def one_client(port: int, requests: int, times_s: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for _ in range(requests):
        started = time.perf_counter()
        connection.request("POST", "/v1/jobs", BODY, headers)
        response = connection.getresponse()
        response.read()
        times_s.append(time.perf_counter() - started)
        assert response.status == 202, response.status


def load(port: int, clients: int, requests: int) -> dict[str, float]:
    """Send ``requests`` from each of ``clients`` at once."""
    times_s: list[float] = []
    threads = [threading.Thread(target=one_client, args=(port, requests, times_s)) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - started
    assert len(times_s) == clients * requests, "a client failed"
    return {
        "p50_ms": percentile(times_s, 50) * 1000,
        "p99_ms": percentile(times_s, 99) * 1000,
        "jobs_per_s": len(times_s) / wall_s,
    }


def memory_mib(process: psutil.Process) -> float:
    """Sum the unique memory of the API's processes."""
    return sum(child.memory_full_info().uss for child in [process, *process.children(recursive=True)]) / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_api(Path(folder)) as (port, process):
        load(port, 8, WARM_UP)
        idle = memory_mib(process)
        runs = {clients: [load(port, clients, 1600 // clients) for _ in range(RUNS)] for clients in (1, 32)}
        figures = {
            f"{clients} client{'s' * (clients > 1)}": {name: spread([run[name] for run in of]) for name in of[0]}
            for clients, of in runs.items()
        }
        keep(
            "submit",
            "python -m benchmarks.submit",
            {**figures, "api_memory_mib": {"idle": idle, "after the load": memory_mib(process)}},
        )


if __name__ == "__main__":
    main()
