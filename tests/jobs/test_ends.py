"""Each end of a job is announced, and a listener hears of it, whatever becomes of its connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.ends import CHANNEL, Ends
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Created, NewJobs
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.stack.servers import start_redis
from tests import taking
from tests.conftest import ports_in_turn
from tests.faults.proxy import Fault, Mode, Proxy
from tests.jobs.full_ledger import QUEUE, RESULT, SPEC
from tests.waiting import wait_until


def create(ledger: Ledger, *, start_deadline_s: int = 60) -> str:
    creation = ledger.create(
        NewJobs("ant", QUEUE, (SPEC % "one",), start_deadline_s), max_in_flight=99, idempotency_ttl_s=60
    )
    assert creation.outcome is Created.CREATED
    return creation.id


def claim(ledger: Ledger, job_id: str, **options: float) -> JobRecord:
    record = taking.claim(ledger, job_id, **options)  # type: ignore[arg-type]  # lease_s, max_attempts
    assert record is not None
    return record


def succeed(ledger: Ledger, client: redis.Redis) -> str:
    record = claim(ledger, create(ledger))
    ledger.succeed(record, RESULT)
    ledger.succeed(record, RESULT)  # a repeated call ends nothing
    return record.id


def fail(ledger: Ledger, client: redis.Redis) -> str:
    record = claim(ledger, create(ledger))
    ledger.fail(record, "image_corrupt", "The JPEG file is damaged.")
    return record.id


def cancel_queued(ledger: Ledger, client: redis.Redis) -> str:
    job_id = create(ledger)
    ledger.cancel(job_id, "ant")
    return job_id


def cancel_running(ledger: Ledger, client: redis.Redis) -> str:
    record = claim(ledger, create(ledger))
    ledger.cancel(record.id, "ant")
    ledger.finish_canceled(record)
    return record.id


def cancel_handed_back(ledger: Ledger, client: redis.Redis) -> str:
    record = claim(ledger, create(ledger))
    ledger.cancel(record.id, "ant")
    ledger.release(record, delay_s=0, charged=True)
    return record.id


def exhaust(ledger: Ledger, client: redis.Redis) -> str:
    record = claim(ledger, create(ledger), lease_s=0.001)
    wait_until(lambda: ledger.reap(max_attempts=1).failed)
    return record.id


def expire(ledger: Ledger, client: redis.Redis) -> str:
    job_id = create(ledger, start_deadline_s=0)
    wait_until(lambda: ledger.reap(max_attempts=1).expired)
    return job_id


def expire_at_claim(ledger: Ledger, client: redis.Redis) -> str:
    job_id = create(ledger, start_deadline_s=0)
    assert ledger.claim_next((QUEUE,), "node-1", lease_s=9, max_attempts=3).record is None
    return job_id


def release(ledger: Ledger, client: redis.Redis) -> str:
    ledger.release(claim(ledger, create(ledger)), delay_s=0, charged=True)
    return ""


def retry(ledger: Ledger, client: redis.Redis) -> str:
    job_id = fail(ledger, client)
    ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=9)
    return job_id


ENDING = (
    succeed,
    fail,
    cancel_queued,
    cancel_running,
    cancel_handed_back,
    exhaust,
    expire,
    expire_at_claim,
    release,
    retry,
)


@pytest.mark.parametrize("way", ENDING, ids=lambda way: way.__name__)
def test_each_end_of_a_job_is_announced_once_and_nothing_else(
    ledger: Ledger, redis_client: redis.Redis, way: Callable[[Ledger, redis.Redis], str]
) -> None:
    with redis_client.pubsub() as channel:
        channel.subscribe(CHANNEL)
        assert channel.get_message(timeout=10)["type"] == "subscribe"

        ended = way(ledger, redis_client)
        redis_client.publish(CHANNEL, "the last")

        heard: list[str] = []
        while "the last" not in heard:
            message = channel.get_message(timeout=10)
            heard += [message["data"]] if message else []
    ids = [one for one in heard if one.startswith("job_")]  # others may listen here, and publish their canaries
    assert ids == ([ended] if ended else [])
    assert not ended or way is retry or ledger.status(ended) in set(Status) - {Status.QUEUED, Status.PROCESSING}


def test_a_job_ends_though_its_end_may_not_be_announced(redis_client: redis.Redis, redis_url: str) -> None:
    """As for programs that are replaced before Redis has the new version's users."""
    redis_client.execute_command("ACL", "SETUSER", "mute", "on", ">word", "~*", "+@all", "-publish")
    try:
        client = connect(SharedSettings(redis_url=redis_url.replace("redis://", "redis://mute:word@")))
        ledger = Ledger(client, 3600)
        job_id = create(ledger)

        ledger.cancel(job_id, "ant")

        assert ledger.status(job_id) is Status.CANCELED
        client.close()
    finally:
        redis_client.execute_command("ACL", "DELUSER", "mute")


class Hearer:
    """One that listens, and notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.begun = 0
        self.wanted = True

    def jobs(self) -> list[str]:
        """Return the jobs that it heard of; others may listen here, too, and publish their canaries."""
        return [word for word in self.heard if word.startswith("job_")]

    def listen(self, ends: Ends) -> None:
        def begin() -> None:
            self.begun += 1

        ends.listen(self.heard.append, begin, lambda: self.wanted)


@contextmanager
def listening(url: str) -> Iterator[tuple[Hearer, Ends]]:
    client = connect(SharedSettings(redis_url=url))
    hearer, ends = Hearer(), Ends(client, canary_s=0.5, linger_s=0.2)
    hearer.listen(ends)
    try:
        yield hearer, ends
    finally:
        hearer.wanted = False
        client.close()


USER = "listener"


@contextmanager
def user(client: redis.Redis, *rules: str) -> Iterator[None]:
    """Make a user for a listener, so that its connections can be told from others."""
    client.execute_command("ACL", "SETUSER", USER, "on", ">word", "~*", "+@all", *rules)
    try:
        yield
    finally:
        client.execute_command("ACL", "DELUSER", USER)


def url_of_user(url: str) -> str:
    return url.replace("redis://", f"redis://{USER}:word@")


def subscribers(client: redis.Redis) -> int:
    """Return how many of the listener's connections have subscribed to something."""
    return sum(one["user"] == USER and one["sub"] != "0" for one in client.client_list())


def test_a_listener_hears_of_ends_on_one_connection(ledger: Ledger, redis_client: redis.Redis, redis_url: str) -> None:
    with user(redis_client, "&*"), listening(url_of_user(redis_url)) as (hearer, ends):
        for _ in range(3):
            hearer.listen(ends)
        wait_until(lambda: ends.hears)

        ended = cancel_queued(ledger, redis_client)

        wait_until(lambda: hearer.jobs() == [ended])
        assert (subscribers(redis_client), hearer.begun) == (1, 1)


def test_a_listener_hears_again_after_redis_has_restarted(tmp_path: Path) -> None:
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log")
    try:
        with listening(server.url) as (hearer, ends):
            wait_until(lambda: ends.hears)
            server.stop()
            wait_until(lambda: not ends.hears, 30)
            with ports_in_turn():
                server = start_redis(tmp_path / "data", log=tmp_path / "redis.log", port=server.port)
            wait_until(lambda: hearer.begun == 2 and ends.hears, 30)

            with connect(SharedSettings(redis_url=server.url)) as client:
                ended = cancel_queued(Ledger(client, 3600), client)
            wait_until(lambda: hearer.jobs() == [ended])
    finally:
        server.stop()


def test_a_listener_leaves_a_connection_that_delivers_nothing(
    redis_client: redis.Redis, redis_url: str, ledger: Ledger
) -> None:
    """As to a server that is no longer the primary, and that nobody publishes to any more."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy, listening(f"redis://127.0.0.1:{proxy.port}/0") as (hearer, ends):
        wait_until(lambda: ends.hears)
        proxy.set(Fault(Mode.BLACKHOLE))
        wait_until(lambda: not ends.hears, 40)

        proxy.heal()
        wait_until(lambda: ends.hears, 40)

        ended = cancel_queued(ledger, redis_client)
        wait_until(lambda: ended in hearer.heard)


def test_a_listener_that_was_refused_hears_once_it_may(redis_client: redis.Redis, redis_url: str) -> None:
    with user(redis_client, "resetchannels"), listening(url_of_user(redis_url)) as (hearer, ends):
        wait_until(lambda: any(entry["username"] == USER for entry in redis_client.acl_log()))
        assert not ends.hears
        redis_client.execute_command("ACL", "SETUSER", USER, "&*")

        wait_until(lambda: ends.hears and hearer.begun == 1, 30)


def test_nobody_listens_when_nobody_waits(redis_client: redis.Redis, redis_url: str) -> None:
    with user(redis_client, "&*"), listening(url_of_user(redis_url)) as (hearer, ends):
        wait_until(lambda: ends.hears)

        hearer.wanted = False
        wait_until(lambda: not ends.hears and subscribers(redis_client) == 0, 30)

        hearer.wanted = True
        hearer.listen(ends)
        wait_until(lambda: ends.hears and subscribers(redis_client) == 1, 30)
