"""A receiver that hangs: webhooks waiting behind it lose nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.spec import Webhook
from maskfleet.jobs.settings import CourierSettings
from maskfleet.worker.courier.courier import Courier
from tests.waiting import wait_until

SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"}}'
JOBS = 120


@pytest.fixture
def hanging_receiver() -> Iterator[str]:
    """An address that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=4 * JOBS) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"


def test_a_webhook_that_waits_for_a_free_sender_uses_up_no_try(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis, hanging_receiver: str
) -> None:
    webhook = Webhook(url=hanging_receiver)
    for _ in range(JOBS):
        job = NewJobs(tenant="ant", queue="sam.m.normal", specs_json=(SPEC,), start_deadline_s=0, webhook=webhook)
        ledger.create(job, max_in_flight=JOBS, idempotency_ttl_s=60)
    settings = CourierSettings(
        redis_url=redis_url,
        webhook_master_secrets=("whsec_" + "c2VjcmV0" * 4,),
        webhook_schedule_s=(0, 600, 600, 600, 600),
        webhook_timeout_s=0.5,
        webhook_breaker_failures=0,
        tick_s=0.02,
        sweep_s=0,
        egress_allow_private=True,
    )
    over = threading.Event()
    courier = threading.Thread(target=Courier(settings).run, args=(over.is_set,))
    courier.start()

    def tries() -> list[str]:
        return [str(redis_client.hget(key, "tries")) for key in redis_client.scan_iter("mf:delivery:*")]

    try:
        wait_until(lambda: redis_client.zcount("mf:deliveries", _soon(redis_client), "+inf") == JOBS, 60)
    finally:
        over.set()
        courier.join(30)

    assert tries() == ["1"] * JOBS


def _soon(client: redis.Redis) -> int:
    """A minute from now: later than any courier's lease, earlier than a second attempt."""
    return (int(client.time()[0]) + 60) * 1000
