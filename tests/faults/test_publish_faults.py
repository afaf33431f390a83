"""Any failure to publish a message is reported in one way, and breaks neither the API nor the courier."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.messages import Publisher
from maskfleet.jobs.settings import SharedSettings
from maskfleet.stack.servers import start_redis
from tests.faults.proxy import Fault, Mode, Proxy

QUEUE = "sam.m.normal"


@pytest.fixture
def way(redis_url: str, redis_client: redis.Redis) -> Iterator[Proxy]:
    with Proxy(int(redis_url.split(":")[2].split("/")[0])) as way:
        yield way


def publisher(way: Proxy) -> Publisher:
    publisher = Publisher(SharedSettings(redis_url=f"redis://127.0.0.1:{way.port}/0"))
    publisher.publish("job_before", QUEUE)  # so that there is a connection to break
    return publisher


def test_a_redis_that_is_away_takes_no_message_and_the_next_one_again(way: Proxy, redis_client: redis.Redis) -> None:
    sender = publisher(way)
    way.set(Fault(Mode.RESET))
    with pytest.raises(QueueUnavailable):
        sender.publish("job_x", QUEUE)

    way.heal()
    sender.publish("job_y", QUEUE)

    assert redis_client.llen(QUEUE) == 2


def test_a_redis_that_hangs_is_given_up_in_time(way: Proxy) -> None:
    sender = publisher(way)
    way.set(Fault(Mode.BLACKHOLE))

    with pytest.raises(QueueUnavailable):
        sender.publish("job_x", QUEUE)

    way.heal()


def test_a_redis_that_was_killed_takes_no_message(tmp_path: Path) -> None:
    server = start_redis(tmp_path / "data", log=tmp_path / "redis.log")
    sender = Publisher(SharedSettings(redis_url=server.url))
    sender.publish("job_before", QUEUE)
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()

    for _ in range(3):  # the first has a connection that is broken, the others make one
        began = time.monotonic()
        with pytest.raises(QueueUnavailable):
            sender.publish("job_x", QUEUE)
        assert time.monotonic() - began < 3  # kombu's own delays add up to 6 s
