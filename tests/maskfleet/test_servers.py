"""The bundled servers: real, private, durable, and gone with the process that started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis
import requests

from maskfleet.jobs.errors import NotFound, StoreMisconfigured
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import ServerFailed, free_port, start_redis, start_s3
from tests.waiting import wait_until


def test_redis_keeps_everything_and_drops_nothing(redis_client: redis.Redis) -> None:
    settings = redis_client.config_get("*")

    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"


def test_redis_finds_its_data_again_after_a_kill(tmp_path: Path) -> None:
    first = start_redis(tmp_path / "data", log=tmp_path / "log")
    client = redis.Redis.from_url(first.url)
    client.set("kept", "yes")
    first.process.kill()
    first.process.wait()

    second = start_redis(tmp_path / "data", log=tmp_path / "log")

    assert redis.Redis.from_url(second.url).get("kept") == b"yes"
    second.stop()


def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServerFailed, match="redis exited with status 1") as failure,
    ):
        start_redis(tmp_path, log=tmp_path / "log", port=taken.getsockname()[1])

    assert "in use" in str(failure.value)


def test_s3_keeps_objects_over_a_restart_on_other_ports(tmp_path: Path) -> None:
    keys = {"access_key": "key", "secret_key": "secret-of-the-test"}
    first = start_s3(tmp_path / "data", **keys, buckets=("one",), log=tmp_path / "log")
    _store(first.url, "one").put("a", b"kept", "text/plain")
    first.stop()

    second = start_s3(tmp_path / "data", **keys, buckets=("one", "two"), log=tmp_path / "log")

    assert second.port != first.port
    assert _store(second.url, "one").read("a") == b"kept"
    with pytest.raises(NotFound):
        _store(second.url, "two").read("a")
    second.stop()


def test_s3_refuses_a_wrong_key(store_fields: dict[str, str]) -> None:
    stranger = Store(SharedSettings(**{**store_fields, "s3_secret_key": "wrong"}))

    with pytest.raises(StoreMisconfigured):
        stranger.ping()


def test_the_servers_listen_on_the_loopback_only(tmp_path: Path) -> None:
    redis_server = start_redis(tmp_path / "redis", log=tmp_path / "redis.log")
    s3 = start_s3(tmp_path / "s3", access_key="key", secret_key="secret", buckets=("one",), log=tmp_path / "s3.log")

    listening = [
        connection.laddr.ip
        for server in (redis_server, s3)
        for connection in psutil.Process(server.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]

    assert set(listening) == {"127.0.0.1"}
    redis_server.stop()
    s3.stop()


def test_a_taken_port_is_not_offered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert free_port(preferred=port) != port

    assert free_port(preferred=port) == port


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the death signal is Linux' own")
def test_a_server_outlives_the_thread_that_started_it_but_not_the_process(tmp_path: Path) -> None:
    program = """
import pathlib, sys, threading
from maskfleet.stack.servers import start_redis
folder = pathlib.Path(sys.argv[1])
started = []
thread = threading.Thread(target=lambda: started.append(start_redis(folder / "data", log=folder / "log")))
thread.start()
thread.join()
print(started[0].pid, started[0].url, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pid, url = parent.stdout.readline().split()
    assert redis.Redis.from_url(url).ping()

    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()

    wait_until(lambda: not psutil.pid_exists(int(pid)))


def _store(endpoint: str, bucket: str) -> Store:
    keys = {"s3_access_key": "key", "s3_secret_key": "secret-of-the-test"}
    return Store(SharedSettings(s3_endpoint=endpoint, bucket=bucket, **keys))


def test_nothing_but_s3_gives_out_or_takes_in_an_object_and_s3_wants_a_key(tmp_path: Path) -> None:
    server = start_s3(
        tmp_path / "data", access_key="key", secret_key="secret-of-the-test", buckets=("one",), log=tmp_path / "log"
    )
    store, secret, key = _store(server.url, "one"), b"of another tenant" * 1000, "uploads/other/upl_1"
    store.put(key, secret, "image/png")
    listening = {
        connection.laddr.port
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    paths = [
        *(
            f"/buckets/one/{key}",
            "/buckets/one/uploads/other/",
            "/buckets/one/uploads/other/?limit=9",
            f"/one/{key}",
            "/one",
        ),
        *("/dir/assign", "/dir/lookup?volumeId=1", "/vol/grow?count=1", "/col/delete?collection=one", "/vol/status"),
        *(f"/{volume},{needle}" for volume in range(1, 4) for needle in ("01637037d6", "02637037d6")),
    ]

    taken: list[tuple[str, str, int]] = []
    for port in sorted(listening):
        for path in paths:
            for method in ("GET", "PUT", "POST", "DELETE"):
                with suppress(requests.RequestException):  # those that speak gRPC alone
                    response = requests.request(
                        method, f"http://127.0.0.1:{port}{path}", data=b"" if method == "GET" else b"evil", timeout=10
                    )
                    assert secret not in response.content
                    if response.ok:
                        taken.append((method, path, port))

    assert len(listening) >= 5
    assert taken == []
    assert store.read(key) == secret
    assert requests.get(store.link(key), timeout=10).content == secret
    assert [found.key for found in store.listed("")] == [key]
    server.stop()
