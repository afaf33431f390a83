"""A job on an image that an idle node has in memory: that node hears of it first, and all others a moment later."""

from __future__ import annotations

import threading

import pytest
import redis

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.queue import canary_queue, queue_name
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.api.pictures import a_picture
from tests.waiting import wait_until

NODE, OTHER = "sam-gpu0@a", "sam-gpu0@b"
QUEUE, OWN = queue_name(MODEL, Priority.NORMAL), canary_queue(NODE)
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=0, best_score=None, metrics=Metrics())


def claim(ledger: Ledger, node: str = NODE) -> JobRecord:
    record = ledger.claim_next((QUEUE,), node, lease_s=60, max_attempts=3).record
    assert record is not None
    return record


def waits_for_nothing() -> bool:
    return not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.fixture
def upload_id(store: Store) -> str:
    return store.put_upload("apiary", a_picture(), "image/jpeg")


def a_page(
    make_settings: SettingsMaker, ledger: Ledger, registry: WorkerRegistry, client: redis.Redis, upload_id: str, ms: int
) -> Caller:
    """A caller whose image a node has; nobody has been rung for.  ms: for how long that node alone is called."""
    for node in (NODE, OTHER):
        registry.announce(WorkerSeen(node, MODEL, "cpu", 12, 3))
    caller = Caller(create_app(make_settings(image_node_wait_ms=ms)), KEYS["apiary"])
    click(caller, upload_id)
    ledger.succeed(claim(ledger), RESULT, image_held_s=600)
    client.delete(QUEUE, OWN)
    return caller


def click(caller: Caller, upload_id: str) -> str:
    prompts = [{"points": [[9, 9]]}]
    return caller.a_job(mode="point", image={"upload_id": upload_id}, prompts=prompts)


def test_if_it_comes_nobody_else_is_called(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 1000)

    job_id = click(page, upload_id)
    assert claim(ledger).id == job_id

    assert redis_client.llen(OWN) == 1
    wait_until(waits_for_nothing)
    assert redis_client.llen(QUEUE) == 0
    assert redis_client.exists(f"mf:image_node:apiary:{upload_id}") == 1


def test_if_it_does_not_come_all_are_called_and_it_is_not_for_the_next_job(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 40)

    click(page, upload_id)
    wait_until(lambda: redis_client.llen(QUEUE) == 1)
    wait_until(waits_for_nothing)
    click(page, upload_id)

    assert redis_client.llen(OWN) == 1
    assert waits_for_nothing()


def test_if_it_is_busy_all_are_called_at_once(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 1000)
    click(page, upload_id)
    claim(ledger)
    wait_until(waits_for_nothing)
    redis_client.delete(OWN)

    click(page, upload_id)

    assert (redis_client.llen(QUEUE), redis_client.llen(OWN)) == (1, 0)
    assert waits_for_nothing()


def test_of_clicks_at_once_it_gets_one_and_all_are_called_to_the_others(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 1000)

    for _ in range(3):
        click(page, upload_id)

    assert redis_client.llen(OWN) == 1
    assert redis_client.llen(QUEUE) >= 1
    wait_until(waits_for_nothing)


def test_nobody_is_called_alone_where_the_wait_is_0_or_all_points_are_asked_for(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 0)
    click(page, upload_id)
    other = Caller(create_app(make_settings()), KEYS["apiary"])
    other.a_job(mode="everything", image={"upload_id": upload_id})

    assert redis_client.llen(QUEUE) >= 1
    assert redis_client.llen(OWN) == 0


def test_a_call_that_cannot_be_sent_is_a_bell_for_all(
    make_settings: SettingsMaker,
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    redis_client: redis.Redis,
    upload_id: str,
) -> None:
    page = a_page(make_settings, ledger, worker_registry, redis_client, upload_id, 40)
    redis_client.set(OWN, "no list")

    click(page, upload_id)

    assert redis_client.llen(QUEUE) == 1
