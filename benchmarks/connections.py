"""Measure what held connections cost those who post: POST to 202 before and while thousands are held.

    python -m benchmarks.connections

A real Redis, a real S3 and the API under gunicorn, with two processes and its default settings but for the limits on
one tenant and one address, which all clients here share.  Held are 2,000 event streams, each of another queued job, and
200 requests whose heads never end: each sends a byte every five seconds, and comes again when the API has ended it.
Then 8 bodies of 88 MB are sent at once, each by a tenant of its own, and by one tenant.  The load generator runs on the
same machine.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis
import requests

from benchmarks.machine import keep, percentile
from benchmarks.submit import BODY, KEY, running_api

STREAMS, SLOW_HEADS, POSTS = 2000, 200, 1000
LARGE, LARGE_BYTES = 8, 88_000_000
#: A head is sent so slowly that the API ends it.
BYTE_EVERY_S = 5.0
TENANTS = [f"large-{number}" for number in range(LARGE)]


class Held:
    """Connections that are held open by a thread, which reads what comes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._tend)
        self.streams = self.events = self.heads_ended = 0

    def __enter__(self) -> Held:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # a socket

    def stream(self, job_id: str) -> None:
        """Follow a job."""
        request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        self._open("stream", request)

    def slow_head(self) -> None:
        """Begin a request that never ends."""
        self._open("head", "GET /live HTTP/1.1\r\nX-Slow: ")

    def _open(self, kind: str, text: str) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        connection.sendall(text.encode())
        connection.setblocking(False)
        with self._lock:
            self._selector.register(connection, selectors.EVENT_READ, kind)

    def _tend(self) -> None:
        next_byte = time.monotonic() + BYTE_EVERY_S
        while not self._ending.is_set():
            ready = self._selector.select(0.05)
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                self._read(connection, key.data)
            if time.monotonic() > next_byte:
                next_byte += BYTE_EVERY_S
                for key in list(self._selector.get_map().values()):
                    if key.data == "head" and isinstance(key.fileobj, socket.socket):
                        self._send_byte(key.fileobj)

    def _read(self, connection: socket.socket, kind: str) -> None:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if kind == "stream" and data:
            self.streams += data.count(b"HTTP/1.1 200")
            self.events += data.count(b"event: job")
        elif kind == "head" or not data:
            self._selector.unregister(connection)
            connection.close()
            if kind == "head":
                self.heads_ended += 1
                self.slow_head()

    def _send_byte(self, connection: socket.socket) -> None:
        try:
            connection.send(b"x")
        except OSError:
            return  # read as its end


def post(port: int, count: int) -> dict[str, float]:
    """Post jobs one after the other, over one connection; return how long each took."""
    session = requests.Session()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    times_ms = []
    for number in range(count + 50):
        began = time.perf_counter()
        response = session.post(f"http://127.0.0.1:{port}/v1/jobs", data=BODY, headers=headers, timeout=60)
        assert response.status_code == 202, response.text
        if number >= 50:
            times_ms.append((time.perf_counter() - began) * 1000)
    return summary(times_ms)


def write(client: redis.Redis, count: int) -> dict[str, float]:
    """Write to Redis directly; the part of a POST that the disk and this machine's other work may delay."""
    times_ms = []
    for number in range(count):
        began = time.perf_counter()
        client.set("benchmark", number)
        times_ms.append((time.perf_counter() - began) * 1000)
        time.sleep(0.005)
    return summary(times_ms)


def measure(port: int, api: psutil.Process) -> dict[str, object]:
    """Post, write to Redis and ask for /live; none of them at the same time."""
    with redis.Redis.from_url(api.environ()["MASKFLEET_REDIS_URL"]) as client:
        return {
            "post": post(port, POSTS),
            "redis_write": write(client, POSTS),
            "live": live(port, 200),
            "rss_mib": largest_mib(api),
        }


def live(port: int, count: int) -> dict[str, float]:
    """Ask whether the API is live, each time over a new connection."""
    times_ms = []
    for _ in range(count):
        began = time.perf_counter()
        assert requests.get(f"http://127.0.0.1:{port}/live", timeout=60).status_code == 200
        times_ms.append((time.perf_counter() - began) * 1000)
    return summary(times_ms)


def summary(times_ms: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(percentile(times_ms, 50), 1),
        "p99_ms": round(percentile(times_ms, 99), 1),
        "max_ms": round(max(times_ms), 1),
    }


def job_ids(port: int) -> Iterator[str]:
    """Queue as many jobs as are followed; yield their ids."""
    for _ in range(STREAMS // 1000):
        batch = {"mode": "everything", "images": [{"s3_uri": f"s3://photos/{n}.jpg"} for n in range(1000)]}
        response = requests.post(
            f"http://127.0.0.1:{port}/v1/batches", json=batch, headers={"Authorization": f"Bearer {KEY}"}, timeout=120
        )
        assert response.status_code == 202, response.text
        yield from response.json()["job_ids"]


@contextmanager
def memory_watched(api: psutil.Process) -> Iterator[dict[str, int]]:
    """Yield the largest RSS of any of the API's processes, in MiB, as it is when the block ends."""
    ended, seen = threading.Event(), {"peak_rss_of_a_process_mib": 0}

    def watch() -> None:
        while not ended.wait(0.02):
            seen["peak_rss_of_a_process_mib"] = max(seen["peak_rss_of_a_process_mib"], largest_mib(api))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()


def largest_mib(api: psutil.Process) -> int:
    return max(child.memory_info().rss for child in api.children()) // 2**20


def send_large(port: int, api: psutil.Process, keys: list[str]) -> dict[str, object]:
    """Send large bodies at once, with one key each; jobs are posted meanwhile."""
    image = (Path(__file__).parent.parent / "examples" / "coins.png").read_bytes()
    # An image, and nothing after it that a decoder would look at.
    encoded = base64.b64encode(image + bytes(LARGE_BYTES * 3 // 4 - len(image))).decode()
    body = json.dumps({"mode": "everything", "image": {"base64": encoded}}).encode()
    statuses: list[str] = []

    def send(key: str) -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            response = requests.post(f"http://127.0.0.1:{port}/v1/jobs", data=body, headers=headers, timeout=120)
            statuses.append(str(response.status_code))
        except requests.RequestException as error:
            statuses.append(type(error).__name__)

    sending = [threading.Thread(target=send, args=(key,)) for key in keys]
    began = time.monotonic()
    times: dict[str, float] = {}
    with memory_watched(api) as memory:
        for thread in sending:
            thread.start()
        times = post(port, 200)
        for thread in sending:
            thread.join()
    return {
        "body_mb": round(len(body) / 1e6, 1),
        "statuses": sorted(statuses),
        "seconds": round(time.monotonic() - began, 1),
        "post_meanwhile": times,
        **memory,
    }


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = {
        "api_keys": ",".join([f"bench:{KEY}", *(f"{tenant}:key-of-{tenant}" for tenant in TENANTS)]),
        "max_connections_per_address": "0",
        "max_held_per_tenant": str(STREAMS),
        "max_stream_s": "3600",
    }
    figures: dict[str, object] = {"open_files": {"soft": soft, "hard": hard}, "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder, running_api(Path(folder), **settings) as (port, api):
        ids = list(job_ids(port))
        figures["before"] = measure(port, api)
        with Held(port) as held:
            for job_id in ids:
                held.stream(job_id)
            for _ in range(SLOW_HEADS):
                held.slow_head()
            deadline = time.monotonic() + 120
            while (held.streams < STREAMS or held.events < STREAMS) and time.monotonic() < deadline:
                time.sleep(0.1)
            figures["during"] = {
                **measure(port, api),
                "streams": held.streams,
                "slow_heads": SLOW_HEADS,
                "cpu_percent": [child.cpu_percent(2.0) for child in api.children()],
                "heads_ended_by_the_api": held.heads_ended,
            }
    with tempfile.TemporaryDirectory() as folder, running_api(Path(folder), **settings) as (port, api):
        post(port, 50)
        figures["large_bodies_of_8_tenants"] = send_large(port, api, [f"key-of-{tenant}" for tenant in TENANTS])
        figures["large_bodies_of_1_tenant"] = send_large(port, api, [f"key-of-{TENANTS[0]}"] * LARGE)
    figures["load_after"] = os.getloadavg()[0]
    keep("connections", "python -m benchmarks.connections", figures)


if __name__ == "__main__":
    main()
