"""Steps of Redis' clock, on a Redis whose clock a file sets: libfaketime, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from maskfleet.jobs.ledger.clock import Clock, ledger_now_ms
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs, Reaped
from maskfleet.jobs.schema.record import JobRecord, ProgressView
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Stage, Status
from maskfleet.stack.servers import start_redis
from tests import taking
from tests.conftest import ports_in_turn
from tests.waiting import wait_until

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
NOTHING = Reaped(requeued=0, failed=0, canceled=0, expired=0)
SPEC = '{"mode":"box","image":{"upload_id":"upl_%s"},"prompts":[{"box":[1,1,9,9]}]}' % ("0" * 32)
HOURS = 2 * 3600

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (see CONTRIBUTING.md)")


@dataclass(frozen=True)
class ClockRedis:
    """A Redis whose clock can be set."""

    client: redis.Redis
    file: Path

    def step(self, seconds: int) -> None:
        """Set its clock to this many seconds from the right time."""
        before = self.client.time()[0]
        _set(self.file, seconds)
        wait_until(lambda: abs(self.client.time()[0] - before) > 60)


def _set(file: Path, seconds: int) -> None:
    written = file.with_suffix(".new")
    written.write_text(f"{seconds:+d}s\n")
    written.replace(file)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClockRedis]:
    file = tmp_path / "clock"
    _set(file, 0)
    environment = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_XRESET": "1",
    }
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log", environment=environment)
    with connect(SharedSettings(redis_url=server.url)) as client:
        yield ClockRedis(client, file)
    server.stop()


@pytest.fixture
def ledger(server: ClockRedis) -> Ledger:
    return Ledger(server.client, retention_s=3600)


def create(ledger: Ledger, start_deadline_s: int = 600) -> str:
    jobs = NewJobs(tenant="ant", queue="sam.sam-demo.normal", specs_json=(SPEC,), start_deadline_s=start_deadline_s)
    return ledger.create(jobs, max_in_flight=99, idempotency_ttl_s=60).id


def claim(ledger: Ledger, lease_s: float = 30) -> JobRecord:
    record = taking.claim(ledger, create(ledger), lease_s=lease_s)
    assert record is not None
    return record


@pytest.mark.parametrize("seconds", [HOURS, -HOURS])
def test_a_step_neither_takes_a_healthy_job_away_nor_expires_a_queued_one(
    server: ClockRedis, ledger: Ledger, seconds: int
) -> None:
    clock = Clock(server.client)
    clock.look()
    running, queued = claim(ledger), create(ledger)

    server.step(seconds)
    clock.look()
    reaped = ledger.reap(max_attempts=3)

    assert reaped == NOTHING
    assert ledger.beat(running, ProgressView(stage=Stage.DECODING), lease_s=30) == "ok"
    assert ledger.status(queued) is Status.QUEUED


@pytest.mark.parametrize("seconds", [HOURS, -HOURS])
def test_a_dead_workers_job_comes_back_soon_after_a_step(server: ClockRedis, ledger: Ledger, seconds: int) -> None:
    clock = Clock(server.client, respite_ms=300)
    clock.look()
    before_the_step = claim(ledger)
    server.step(seconds)
    unnoticed = claim(ledger)  # its lease is by the wrong time, if it is by Redis'

    clock.look()
    first = ledger.reap(max_attempts=3)

    assert first == NOTHING
    wait_until(lambda: ledger.reap(max_attempts=3).requeued, 10)
    wait_until(lambda: ledger.reap(max_attempts=3) == NOTHING, 10)
    assert {ledger.status(job.id) for job in (before_the_step, unnoticed)} == {Status.QUEUED}


def test_a_step_back_is_not_believed_even_before_a_courier_notices(server: ClockRedis, ledger: Ledger) -> None:
    Clock(server.client).look()
    server.step(-HOURS)
    job = create(ledger, start_deadline_s=600)

    Clock(server.client).look()  # of a courier that has just started

    assert ledger.reap(max_attempts=3) == NOTHING
    assert ledger.status(job) is Status.QUEUED


def test_several_couriers_take_a_step_back_once(server: ClockRedis, ledger: Ledger) -> None:
    couriers = [Clock(server.client) for _ in range(3)]
    for courier in couriers:
        courier.look()
    before_ms = ledger_now_ms(server.client)

    server.step(HOURS)
    for courier in (*couriers, *couriers):
        courier.look()

    assert abs(ledger_now_ms(server.client) - before_ms) < 60_000


def test_the_ledgers_time_goes_back_to_redis_own_slowly(server: ClockRedis) -> None:
    clock = Clock(server.client)
    clock.look()
    server.step(HOURS)
    clock.look()
    offset_ms = int(server.client.get("mf:clock").split()[1])

    wait_until(lambda: clock.look() or int(server.client.get("mf:clock").split()[1]) > offset_ms, 10)

    assert offset_ms == pytest.approx(-HOURS * 1000, abs=10_000)
