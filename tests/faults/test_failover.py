"""Failovers and lost writes on real pairs of servers: who follows, what may be lost, and who is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from maskfleet.jobs.errors import NotConfirmed, QueueUnavailable
from maskfleet.jobs.ledger.clock import Clock
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.durability import Durability
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Created, Creation, NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import Publisher
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.stack.servers import Server, start_redis
from maskfleet.worker.node.health import why_not_ready
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests import taking
from tests.conftest import ports_in_turn
from tests.faults.laboratory import ROOT
from tests.faults.proxy import Proxy
from tests.redis_pair import Pair, started_pair, started_sentinel
from tests.waiting import wait_until

QUEUE = "sam.stand-in.normal"
SPEC = '{"mode":"box","image":{"upload_id":"upl_%s"},"prompts":[{"box":[1,1,9,9]}]}' % ("0" * 32)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with started_pair(tmp_path) as pair:
        yield pair


def create(ledger: Ledger, key: str = "") -> Creation:
    jobs = NewJobs("ant", QUEUE, (SPEC,), start_deadline_s=600, idempotency_key=key, body_digest=key)
    return ledger.create(jobs, max_in_flight=99, idempotency_ttl_s=60)


@contextmanager
def address(kind: str, pair: Pair, folder: Path) -> Iterator[tuple[str, Proxy | None]]:
    """Give the URL of the pair's primary, by one address that a failover moves or by Sentinels."""
    if kind == "sentinel":
        with started_sentinel(folder, pair) as port:
            yield f"sentinel://127.0.0.1:{port}/ledger/0", None
    else:
        with Proxy(pair.primary.port) as proxy:
            yield f"redis://127.0.0.1:{proxy.port}/0", proxy


def fail_over(pair: Pair, proxy: Proxy | None) -> None:
    if proxy is not None:
        proxy.forward_to(pair.replica.port)
        pair.fail_over()
        return
    os.kill(pair.primary.pid, signal.SIGKILL)
    with pair.client(pair.replica) as client:
        wait_until(lambda: client.info("replication")["role"] == "master", 30)


@pytest.mark.parametrize("kind", ["one address", "sentinel"])
def test_a_failover_is_followed(pair: Pair, store_fields: dict[str, str], tmp_path: Path, kind: str) -> None:
    with address(kind, pair, tmp_path) as (url, proxy), pair.client(pair.replica) as successor, ExitStack() as exits:
        settings = SharedSettings(redis_url=url)
        client = exits.enter_context(connect(settings))
        ledger, registry, publisher = Ledger(client, 3600), WorkerRegistry(client), Publisher(settings)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKFLEET_")}
        node = start_child(
            (sys.executable, "-m", "tests.faults.stand_in"),
            env=environment
            | {f"MASKFLEET_{name.upper()}": value for name, value in store_fields.items()}
            | {
                "MASKFLEET_REDIS_URL": url,
                "MASKFLEET_MODEL": "./stand-in",
                "MASKFLEET_NODE": "node-1",
                "MASKFLEET_CANARY_S": "0.5",
            },
            log=tmp_path / "node.log",
            cwd=ROOT,
        )
        exits.callback(kill_child, node)
        [seen] = wait_until(registry.workers, 60)
        publisher.publish(create(ledger).id, "sam.nobody.normal")
        before = successor.time()[0]
        wait_until(pair.is_in_sync, 10)

        fail_over(pair, proxy)

        # The first calls that can be served are, on connections that were open.
        if proxy is not None:
            job = create(ledger).id
            publisher.publish(job, "sam.nobody.normal")
        else:
            job = wait_until(lambda: created_if_served(ledger), 20)
            wait_until(lambda: published_if_served(publisher, job), 20)
        assert successor.hget(f"mf:job:{job}", "status") == "queued"
        assert successor.llen("sam.nobody.normal") == 2
        # The node announces itself, and takes messages, at the new primary: its process is the same.
        there = WorkerRegistry(successor)
        wait_until(lambda: consumed_at(there, successor) > before + 1, 40)
        wait_until(lambda: why_not_ready(registry.workers(), "node-1", 3) is None, 40)
        assert node.poll() is None
        assert [worker.pid for worker in registry.workers()] == [seen.pid]


def consumed_at(registry: WorkerRegistry, client: redis.Redis) -> int:
    """Return when the node last took a message, by the server's clock; 0 if it has not announced itself there."""
    node = registry.find("node-1")
    return int(client.time()[0]) - node.consumed_s_ago if node else 0


def created_if_served(ledger: Ledger) -> str:
    try:
        return create(ledger).id
    except QueueUnavailable:
        return ""


def published_if_served(publisher: Publisher, job: str) -> bool:
    try:
        publisher.publish(job, "sam.nobody.normal")
    except QueueUnavailable:
        return False
    return True


def test_what_no_replica_has_is_not_accepted_and_sending_it_again_makes_one_job(pair: Pair) -> None:
    client = connect(SharedSettings(redis_url=pair.primary.url))
    ledger = Ledger(client, 3600, durability=Durability(replicas=1, aof=True, wait_s=0.3))
    create(ledger)

    with pair.replica_frozen(), pytest.raises(NotConfirmed):
        create(ledger, key="order-42")
    with pair.replica_frozen(), pytest.raises(NotConfirmed):  # it is known, and still not confirmed
        create(ledger, key="order-42")
    again = create(ledger, key="order-42")

    assert again.outcome is Created.KNOWN
    assert client.zcard("mf:jobs:ant") == 2
    with pair.client(pair.replica) as replica:
        assert replica.hget(f"mf:job:{again.id}", "status") == "queued"


def test_a_job_that_was_accepted_outlives_a_failover_to_a_replica_that_lagged(pair: Pair) -> None:
    ledger = Ledger(
        connect(SharedSettings(redis_url=pair.primary.url)), 3600, durability=Durability(replicas=1, wait_s=0.3)
    )
    unsafe = Ledger(connect(SharedSettings(redis_url=pair.primary.url)), 3600)
    accepted = create(ledger).id
    with pair.replica_frozen():
        lost = create(unsafe).id
        with pytest.raises(NotConfirmed):
            create(ledger)
        os.kill(pair.primary.pid, signal.SIGKILL)
    with pair.client(pair.replica) as replica:
        replica.replicaof("NO", "ONE")
    promoted = Ledger(connect(SharedSettings(redis_url=pair.replica.url)), 3600)

    assert promoted.status(accepted) is Status.QUEUED
    # What the socket had may have arrived after all, but nobody was promised so.
    assert promoted.status(lost) in (None, Status.QUEUED)


def test_a_retry_is_confirmed_as_well(pair: Pair) -> None:
    client = connect(SharedSettings(redis_url=pair.primary.url))
    ledger = Ledger(client, 3600, durability=Durability(replicas=1, wait_s=0.3))
    record = taking.claim(ledger, create(ledger).id)
    assert record is not None
    ledger.fail(record, "timeout", "")

    with pair.replica_frozen(), pytest.raises(NotConfirmed):
        ledger.retry(record.id, "ant", start_deadline_s=60, max_in_flight=9)

    assert ledger.status(record.id) is Status.QUEUED


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log")
    yield server
    server.stop()


def test_a_redis_that_comes_back_empty_is_told_of_once(server: Server) -> None:
    client = connect(SharedSettings(redis_url=server.url))
    old, other = Epoch(client), Epoch(client)
    old.check()
    other.check()
    client.flushall()

    with capture_logs() as logs:
        wait_until(lambda: says_lost(old) and says_lost(other), 10)

    assert [line["log_level"] for line in logs if line["event"] == "ledger_lost"] == ["error", "error"]
    with pytest.raises(QueueUnavailable):  # whoever starts now reports it as well
        Epoch(client).check()
    old.note()  # work goes on
    client.hincrby("mf:epoch", "missed_ms", -61_000)
    Epoch(client).check()


def says_lost(epoch: Epoch) -> bool:
    try:
        epoch.check()
    except QueueUnavailable as error:
        return error.reason == "ledger_lost"
    return False


def test_writes_that_are_lost_with_the_end_of_the_log_are_noticed(server: Server, tmp_path: Path) -> None:
    client = connect(SharedSettings(redis_url=server.url))
    clock = Clock(client)
    [log] = (tmp_path / "data" / "appendonlydir").glob("*.incr.aof")
    clock.look()
    kept = log.stat().st_size
    first_ms = int((client.get("mf:clock") or "0").split()[0])

    def is_a_second_later() -> bool:
        clock.look()
        return int((client.get("mf:clock") or "0").split()[0]) - first_ms > 1000

    wait_until(is_a_second_later)

    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    with log.open("r+b") as file:
        file.truncate(kept + 10)  # in the middle of the second look
    again = replace(server, process=server.start())
    try:
        wait_until(lambda: is_loaded(client), 30)
        with capture_logs() as logs:
            clock.look()
    finally:
        kill_child(again.process)

    [told] = [line for line in logs if line["event"] == "ledger_writes_lost"]
    assert told["log_level"] == "error"
    assert told["lost_s"] == pytest.approx(1, abs=0.5)


def is_loaded(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_redis_that_loads_its_data_is_an_outage(tmp_path: Path) -> None:
    # Valkey's own option for its tests, in microseconds for each key; clients are answered after each 1,024.
    slow = {"key-load-delay": 200}
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log", options=slow)
    client = connect(SharedSettings(redis_url=server.url))
    try:
        filling = client.pipeline(transaction=False)
        for number in range(20_000):
            filling.set(f"filling:{number}", 1)
        filling.execute()
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        server = replace(server, process=server.start())

        wait_until(lambda: reason_now(client) == "loading", 10)

        wait_until(lambda: reason_now(client) == "", 60)
    finally:
        kill_child(server.process)


def reason_now(client: redis.Redis) -> str:
    try:
        Epoch(client).check()
    except QueueUnavailable as error:
        return error.reason
    return ""
