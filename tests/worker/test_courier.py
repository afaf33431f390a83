"""The courier on a real Redis with real receivers: what it delivers, how often, and what it puts right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis

from jobs.deliveries import Deliveries
from jobs.delivery import DeliveryState
from jobs.events import job_event
from jobs.ledger import Ledger
from jobs.queue import queue_name
from jobs.record import Metrics, ResultSummary
from jobs.settings import CourierSettings
from jobs.spec import Priority, Webhook
from jobs.status import Status
from jobs.transitions import NewJob
from maskfleet.webhooks import verify_webhook
from tests.waiting import wait_until
from worker.courier import Courier

SECRET, NEW_SECRET = "whsec_" + "c2VjcmV0" * 4, "whsec_" + "bmV3a2V5" * 4
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"metadata":{"order":"42"}}'
QUEUE = queue_name("sam-demo", Priority.NORMAL)


class Receiver:
    """Answers as it is told, in turn, then 200; keeps all that came."""

    def __init__(self, *answers: int) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        pending = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = pending.pop(0) if pending else 200
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/moved")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    with ExitStack() as receivers:

        def started(*answers: int) -> Receiver:
            receiver = Receiver(*answers)
            receivers.callback(receiver.close)
            return receiver

        yield started


@contextmanager
def courier(redis_url: str, **fields: object) -> Iterator[None]:
    """Run a courier that looks often and tries again at once."""
    settings = CourierSettings(
        **{
            "redis_url": redis_url,
            "webhook_secrets": (SECRET,),
            "webhook_schedule_s": (0, 0.01, 0.01),
            "tick_s": 0.02,
            "egress_allow_private": True,
            "public_url": "https://masks.example.com/",
            "model": "sam-demo",
            "sweep_s": 0,
            **fields,
        }
    )
    over = threading.Event()
    thread = threading.Thread(target=Courier(settings).run, args=(over.is_set,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)
        assert not thread.is_alive()


def create(ledger: Ledger, url: str | None = None, **fields: object) -> str:
    webhook = Webhook(url=url) if url else None
    job = NewJob(
        **{"tenant": "ant", "queue": QUEUE, "spec_json": SPEC, "start_deadline_s": 60, "webhook": webhook, **fields}
    )
    return ledger.create(job, max_in_flight=100, idempotency_ttl_s=60).job_id


def succeed(ledger: Ledger, url: str) -> str:
    job_id = create(ledger, url)
    record = ledger.claim(job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.succeed(record, ResultSummary(prefix="p/", manifest_key="p/m", masks=3, best_score=0.9, metrics=Metrics()))
    return job_id


def test_a_receiver_can_verify_what_it_is_told(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive()
    job_id = succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    [(headers, body)] = receiver.requests
    event = verify_webhook(body, headers, SECRET)
    assert headers["webhook-id"] == f"msg_{job_id}_1_succeeded"
    assert (event.type, event.data.id, event.data.masks) == ("job.succeeded", job_id, 3)
    assert event.data.metadata == {"order": "42"}
    assert event.data.urls.result == f"https://masks.example.com/v1/jobs/{job_id}/result"
    assert len(body) < 20_000


def test_while_secrets_rotate_either_verifies(ledger: Ledger, redis_url: str, receive: Callable[..., Receiver]) -> None:
    receiver = receive()
    succeed(ledger, receiver.url)

    with courier(redis_url, webhook_secrets=(NEW_SECRET, SECRET)):
        wait_until(lambda: receiver.requests)

    [(headers, body)] = receiver.requests
    assert verify_webhook(body, headers, SECRET) == verify_webhook(body, headers, NEW_SECRET)


@pytest.mark.parametrize("answer", [500, 503, 301, 404])
def test_a_receiver_that_fails_is_told_again_with_the_same_id_and_body(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], answer: int, deliveries: Deliveries
) -> None:
    receiver = receive(answer, answer)
    succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    assert len(receiver.requests) == 3
    assert len({(headers["webhook-id"], body) for headers, body in receiver.requests}) == 1


def test_a_webhook_is_given_up_at_the_end_of_its_schedule(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive(*[500] * 9)
    succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    assert len(receiver.requests) == 3


def test_of_a_failure_that_was_retried_meanwhile_nobody_is_told(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    receiver = receive()
    job_id = create(ledger, receiver.url)
    record = ledger.claim(job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.fail(record, "store_unavailable", "Gone.")
    ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)
        ledger.cancel(job_id, "ant")
        wait_until(lambda: receiver.requests and deliveries.waiting() == 0)

    [(headers, _)] = receiver.requests
    assert headers["webhook-id"] == f"msg_{job_id}_2_canceled"
    [dropped, _] = deliveries.of_job(job_id, "ant")
    assert (dropped.id, dropped.state, dropped.tries) == (f"msg_{job_id}_1_failed", DeliveryState.DROPPED, ())


def test_a_receiver_that_is_gone_for_good_is_not_told_again(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive(410)
    succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    assert len(receiver.requests) == 1


def test_a_receiver_at_a_private_address_is_not_told_on_an_open_network(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], redis_client: redis.Redis, deliveries: Deliveries
) -> None:
    receiver = receive()
    job_id = succeed(ledger, receiver.url)

    with courier(redis_url, egress_allow_private=False):
        wait_until(lambda: deliveries.waiting() == 0)

    assert receiver.requests == []
    [told] = deliveries.of_job(job_id, "ant")
    assert (told.state, [made.error for made in told.tries]) == (DeliveryState.REFUSED, ["url_not_allowed"])


def test_a_job_whose_worker_died_is_published_again(ledger: Ledger, redis_url: str, redis_client: redis.Redis) -> None:
    job_id = create(ledger)
    ledger.claim(job_id, "node-1", lease_s=0.01, max_attempts=3)

    with courier(redis_url):
        wait_until(lambda: redis_client.llen(QUEUE) == 1)

    assert ledger.status(job_id) is Status.QUEUED
    assert f'["{job_id}"]'.encode() in b64_body(str(redis_client.lindex(QUEUE, 0)))


def b64_body(message: str) -> bytes:
    import base64
    import json

    return base64.b64decode(json.loads(message)["body"])


def test_a_job_that_the_api_could_not_publish_is_published(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis
) -> None:
    job_id = create(ledger)
    redis_client.zadd("mf:outbox", {job_id: 0})  # as if the grace for the API had passed

    with courier(redis_url):
        wait_until(lambda: redis_client.llen(QUEUE) == 1)


def test_a_job_that_waits_too_long_expires_and_its_owner_is_told(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver]
) -> None:
    receiver = receive()
    job_id = create(ledger, receiver.url, start_deadline_s=0)

    with courier(redis_url):
        wait_until(lambda: receiver.requests)

    [(headers, body)] = receiver.requests
    assert ledger.status(job_id) is Status.EXPIRED
    assert verify_webhook(body, headers, SECRET).type == "job.expired"


def test_a_courier_outlives_a_redis_that_is_away(ledger: Ledger, redis_url: str, redis_client: redis.Redis) -> None:
    with courier(redis_url):
        for _ in range(5):
            redis_client.client_kill_filter(_type="normal", skipme=True)
        job_id = create(ledger, start_deadline_s=0)
        wait_until(lambda: ledger.status(job_id) is Status.EXPIRED)


def test_an_event_depends_on_the_record_alone(ledger: Ledger) -> None:
    job_id = create(ledger)
    ledger.cancel(job_id, "ant")
    record = ledger.read(job_id)
    assert record is not None

    bodies = {job_event("canceled", record, "sam-demo", "https://x").model_dump_json() for _ in range(2)}

    assert len(bodies) == 1
