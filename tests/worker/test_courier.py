"""The courier on a real Redis with real receivers: what it delivers, how often, and what it repairs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis
from pydantic import ValidationError

from maskfleet.client.errors import WebhookRejected
from maskfleet.client.webhooks import verify_webhook
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.webhook_secrets import WebhookSecrets
from maskfleet.jobs.messages import MOST_BELLS
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.delivery import DeliveryState
from maskfleet.jobs.schema.events import job_event
from maskfleet.jobs.schema.record import Metrics, ResultSummary
from maskfleet.jobs.schema.spec import EventName, Priority, Webhook
from maskfleet.jobs.settings import CourierSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.worker.courier.courier import Courier
from maskfleet.worker.courier.send import signed_headers
from tests import taking
from tests.taking import take_due
from tests.waiting import wait_until

MASTER, NEW_MASTER = "whsec_" + "c2VjcmV0" * 4, "whsec_" + "bmV3a2V5" * 4
SECRET = tenant_secret(MASTER, "ant")
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"metadata":{"order":"42"}}'
QUEUE = queue_name("sam-demo", Priority.NORMAL)


class Receiver:
    """Send scripted responses in order, then 200; keep every request.  says: the body of each response."""

    def __init__(self, *answers: int, says: bytes = b"", **headers: str) -> None:
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
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(says)))
                self.end_headers()
                self.wfile.write(says)

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

        def started(*answers: int, says: bytes = b"", **headers: str) -> Receiver:
            receiver = Receiver(*answers, says=says, **headers)
            receivers.callback(receiver.close)
            return receiver

        yield started


def courier_settings(redis_url: str, **fields: object) -> CourierSettings:
    return CourierSettings(
        **{
            "redis_url": redis_url,
            "webhook_master_secrets": (MASTER,),
            "webhook_schedule_s": (0, 0.01, 0.01),
            "webhook_breaker_failures": 0,
            "tick_s": 0.02,
            "egress_allow_private": True,
            "public_url": "https://masks.example.com/",
            "model": "sam-demo",
            "sweep_s": 0,
            **fields,
        }
    )


@contextmanager
def courier(redis_url: str, **fields: object) -> Iterator[None]:
    """Run a courier that polls often and retries immediately."""
    settings = courier_settings(redis_url, **fields)
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
    job = NewJobs(
        **{"tenant": "ant", "queue": QUEUE, "specs_json": (SPEC,), "start_deadline_s": 60, "webhook": webhook, **fields}
    )
    return ledger.create(job, max_in_flight=1000, idempotency_ttl_s=60).id


def succeed(ledger: Ledger, url: str) -> str:
    job_id = create(ledger, url)
    record = taking.claim(ledger, job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.succeed(record, ResultSummary(prefix="p/", manifest_key="p/m", masks=3, best_score=0.9, metrics=Metrics()))
    return job_id


def _being_sent(client: redis.Redis, tenants: str = "*") -> int:
    return sum(client.zcard(key) for key in client.scan_iter(f"mf:sending:{tenants}", count=1000))


def _failed_tries(client: redis.Redis) -> int:
    tries = [attempt for key in client.scan_iter("mf:tries:*", count=1000) for attempt in client.lrange(key, 0, -1)]
    return sum('"failed"' in attempt for attempt in tries)


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


def test_a_tenants_webhook_is_signed_with_a_secret_that_no_other_tenant_knows(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver]
) -> None:
    ants, bees = receive(), receive()
    succeed(ledger, ants.url)
    create(ledger, bees.url, tenant="bee", start_deadline_s=0)

    with courier(redis_url):
        wait_until(lambda: ants.requests and bees.requests)

    known_to_the_bee = tenant_secret(MASTER, "bee")
    [(of_the_ant, ants_body)], [(of_the_bee, bees_body)] = ants.requests, bees.requests
    assert verify_webhook(bees_body, of_the_bee, known_to_the_bee).type == "job.expired"
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(ants_body, of_the_ant, known_to_the_bee)
    forged = signed_headers("msg_forged", ants_body.decode(), (known_to_the_bee,), datetime.now(UTC))
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(ants_body, forged, SECRET)


@pytest.mark.parametrize("secret", [SECRET, tenant_secret(NEW_MASTER, "ant")])
def test_while_the_master_secret_is_replaced_the_secrets_of_both_verify(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], secret: str
) -> None:
    receiver = receive()
    succeed(ledger, receiver.url)

    with courier(redis_url, webhook_master_secrets=(NEW_MASTER, MASTER)):
        wait_until(lambda: receiver.requests)

    [(headers, body)] = receiver.requests
    assert verify_webhook(body, headers, secret).type == "job.succeeded"


def test_a_rotated_secret_signs_from_the_next_webhook_on_and_the_earlier_one_too_for_as_long_as_asked(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], redis_client: redis.Redis
) -> None:
    receiver = receive()
    secrets = WebhookSecrets(redis_client, (MASTER,))

    with courier(redis_url):
        secrets.rotate("ant", overlap_s=600)
        succeed(ledger, receiver.url)
        wait_until(lambda: len(receiver.requests) == 1)
        overlapping = [secret.text for secret in secrets.of("ant")]
        secrets.rotate("ant", overlap_s=0)
        succeed(ledger, receiver.url)
        wait_until(lambda: len(receiver.requests) == 2)

    [(first, first_body), (second, second_body)] = receiver.requests
    [latest] = secrets.of("ant")
    assert overlapping[1] == SECRET
    for secret in overlapping:
        assert verify_webhook(first_body, first, secret).type == "job.succeeded"
        with pytest.raises(WebhookRejected, match="wrong_signature"):
            verify_webhook(second_body, second, secret)
    assert verify_webhook(second_body, second, latest.text).type == "job.succeeded"


def test_a_secret_that_receivers_share_signs_only_while_it_is_set(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver]
) -> None:
    receiver, shared = receive(), "whsec_" + "c2hhcmVk" * 4
    succeed(ledger, receiver.url)
    with courier(redis_url, webhook_shared_secrets=(shared,)):
        wait_until(lambda: len(receiver.requests) == 1)
    succeed(ledger, receiver.url)
    with courier(redis_url):
        wait_until(lambda: len(receiver.requests) == 2)

    [(first, first_body), (second, second_body)] = receiver.requests
    assert verify_webhook(first_body, first, shared) == verify_webhook(first_body, first, SECRET)
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(second_body, second, shared)


def test_a_courier_does_not_start_without_a_master_secret(redis_url: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "maskfleet", "courier"],
        env={**os.environ, "MASKFLEET_REDIS_URL": redis_url, "MASKFLEET_WEBHOOK_SECRETS": MASTER},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert shown.returncode == 1
    assert "Set MASKFLEET_WEBHOOK_MASTER_SECRETS" in shown.stderr


@pytest.mark.parametrize(
    "fields",
    [
        {"webhook_master_secrets": MASTER, "webhook_shared_secrets": MASTER},
        {"webhook_master_secrets": "whsec_c2hvcnQ="},
        {"webhook_master_secrets": "whsec_!" + "c2VjcmV0" * 4},
        {"webhook_master_secrets": MASTER.removeprefix("whsec_")},
    ],
)
def test_a_master_secret_that_is_known_short_or_malformed_is_refused_and_not_shown(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        CourierSettings(**fields)

    assert "c2VjcmV0" not in str(refused.value)


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


def test_each_try_is_kept_with_what_the_receiver_answered(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive(503, 302, says=b"<p>\r\n\xff\x00 " + "bees 蜂 ".encode() * 400)
    job_id = succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    [told] = deliveries.of(job_id, "ant")
    assert told.state is DeliveryState.DELIVERED
    assert [(attempt.number, attempt.status, attempt.outcome) for attempt in told.tries] == [
        (1, 503, "failed"),
        (2, 302, "failed"),
        (3, 200, "delivered"),
    ]
    assert "Redirects are not followed" in (told.tries[1].detail or "")
    answer = told.tries[0].answer
    assert answer.startswith("<p>\n\ufffd\ufffd bees 蜂 ")
    assert 800 < len(answer.encode()) <= 1024 + 8
    assert all(
        0 < attempt.duration_s < 10 and attempt.error is None and attempt.headers is None for attempt in told.tries
    )


def test_an_answer_that_breaks_off_or_does_not_end_counts_by_its_status(
    ledger: Ledger, redis_url: str, deliveries: Deliveries
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        job_id = succeed(ledger, f"http://127.0.0.1:{listening.getsockname()[1]}/hook")
        with courier(redis_url, webhook_timeout_s=0.5):
            first, _ = listening.accept()
            with first:
                first.recv(65536)
                first.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 900\r\n\r\nso busy")
            second, _ = listening.accept()
            with second:
                second.recv(65536)
                second.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ntaken\r\n")
                wait_until(lambda: deliveries.waiting() == 0)

    [told] = deliveries.of(job_id, "ant")
    assert told.state is DeliveryState.DELIVERED
    assert [(attempt.status, attempt.answer) for attempt in told.tries] == [(503, "so busy"), (200, "taken")]


def test_a_receiver_that_does_not_answer_is_named_in_the_try(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    gone = receive()
    gone.close()
    job_id = succeed(ledger, gone.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    [told] = deliveries.of(job_id, "ant")
    assert told.state is DeliveryState.GIVEN_UP
    assert {(attempt.status, attempt.error) for attempt in told.tries} == {(None, "ConnectionError")}


@pytest.mark.parametrize(
    ("asked", "at_least_s", "at_most_s"),
    [
        ("600", 600, 720),
        ("in an hour", 3000, 4320),
        ("999999999", 86400, 86400 * 1.2),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 100, 120),
        ("soon", 100, 120),
    ],
)
def test_a_receiver_that_asks_for_time_gets_it(
    ledger: Ledger,
    redis_url: str,
    receive: Callable[..., Receiver],
    deliveries: Deliveries,
    asked: str,
    at_least_s: float,
    at_most_s: float,
) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    receiver = receive(429, Retry_After=in_an_hour if asked == "in an hour" else asked)
    job_id = succeed(ledger, receiver.url)

    with courier(redis_url, webhook_schedule_s=(0, 100)):
        wait_until(lambda: deliveries.of(job_id, "ant")[0].tries)

    [told] = deliveries.of(job_id, "ant")
    delay_s = (told.next_try_ms or 0) / 1000 - told.tries[0].at.timestamp()
    assert at_least_s - 1 <= delay_s <= at_most_s + 15


def test_a_410_disables_the_endpoint_and_a_redelivery_that_arrives_enables_it(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive(410)
    first = succeed(ledger, receiver.url)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)
        second = succeed(ledger, receiver.url)
        wait_until(lambda: deliveries.waiting() == 0)
        seen = [deliveries.of(job_id, "ant")[0] for job_id in (first, second)]
        deliveries.redeliver(seen[1].id, "ant")
        wait_until(lambda: deliveries.waiting() == 0)
        succeed(ledger, receiver.url)
        wait_until(lambda: len(receiver.requests) == 3)

    assert [told.state for told in seen] == [DeliveryState.REFUSED, DeliveryState.DISABLED]
    assert receiver.requests[1][0]["webhook-id"] == seen[1].id


def test_every_try_sends_the_same_bytes_whatever_becomes_of_the_record(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    receiver = receive(500, 500, 500)
    job_id = succeed(ledger, receiver.url)
    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)
    redis_client.delete(f"mf:job:{job_id}")
    [given_up] = deliveries.of(job_id, "ant")

    deliveries.redeliver(given_up.id, "ant")
    with courier(redis_url, public_url="https://moved.example.com"):
        wait_until(lambda: deliveries.waiting() == 0)

    assert given_up.state is DeliveryState.GIVEN_UP
    assert len(receiver.requests) == 4
    assert len({(headers["webhook-id"], body) for headers, body in receiver.requests}) == 1


def test_a_start_is_told_before_the_end(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries
) -> None:
    receiver = receive()
    job_id = create(ledger, webhook=Webhook(url=receiver.url, events=tuple(EventName)))
    record = taking.claim(ledger, job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)
        ledger.fail(record, "internal_error", "It broke.")
        wait_until(lambda: deliveries.waiting() == 0)

    events = [verify_webhook(body, headers, SECRET) for headers, body in receiver.requests]
    assert [(event.type, str(event.data.status)) for event in events] == [
        ("job.started", "processing"),
        ("job.failed", "failed"),
    ]


def test_a_ping_shows_the_bytes_and_headers_that_were_sent(
    redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    receiver = receive(500)
    delivery_id = deliveries.ping("ant", receiver.url, '{"type":"webhook.ping"}')

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    told = deliveries.read(delivery_id, "ant")
    [(headers, body)] = receiver.requests
    assert told is not None
    assert (told.state, body.decode()) == (DeliveryState.GIVEN_UP, told.body)
    assert (told.tries[0].headers or {}).items() <= headers.items()


def test_a_receiver_that_hangs_delays_no_other_one(
    ledger: Ledger, redis_url: str, receive: Callable[..., Receiver], deliveries: Deliveries, redis_client: redis.Redis
) -> None:
    """Hundreds are due to a host that accepts connections and never responds, ahead of another host's few."""
    receiver = receive()
    hanging = socket.create_server(("127.0.0.1", 0), backlog=512)
    for number in range(300):
        create(ledger, f"http://127.0.0.1:{hanging.getsockname()[1]}/{number}", start_deadline_s=0)
    ledger.reap(max_attempts=3, limit=300)

    with courier(redis_url, webhook_timeout_s=60, webhook_schedule_s=(0, 600), webhook_breaker_failures=5):
        wait_until(lambda: _being_sent(redis_client) == 3)
        for _ in range(20):
            succeed(ledger, receiver.url)
        wait_until(lambda: len(receiver.requests) == 20)
        wait_until(lambda: _being_sent(redis_client) <= 3)  # that the last was received is recorded
        still_hanging = _being_sent(redis_client)
        hanging.close()  # each attempt at it fails immediately from here on
        wait_until(lambda: _failed_tries(redis_client) >= 5 and _being_sent(redis_client) == 0)

    # The breaker opens when five have failed, and those in flight then; all others wait uncharged.
    assert (still_hanging, deliveries.waiting()) == (3, 300)
    assert _failed_tries(redis_client) <= 5 + 8


@pytest.mark.parametrize("others", [1, 2, 4])
def test_tenants_whose_receivers_hang_on_many_hosts_take_no_sender_from_one_whose_receiver_answers(
    ledger: Ledger,
    redis_url: str,
    receive: Callable[..., Receiver],
    redis_client: redis.Redis,
    others: int,
) -> None:
    receiver, tenants = receive(), [f"ant-{number}" for number in range(others)]
    with ExitStack() as hanging:
        for tenant in tenants:
            for _ in range(12):
                host = hanging.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8))
                for _ in range(2):
                    create(ledger, f"http://127.0.0.1:{host.getsockname()[1]}/", tenant=tenant, start_deadline_s=0)
        ledger.reap(max_attempts=3, limit=1000)

        with courier(redis_url, webhook_timeout_s=60, webhook_schedule_s=(0, 600)):
            wait_until(lambda: _being_sent(redis_client) == 4 * others)
            for _ in range(60):
                create(ledger, receiver.url, tenant="bee", start_deadline_s=0)
            wait_until(lambda: len(receiver.requests) == 60)
            still_hanging = _being_sent(redis_client, "ant-*")
            hanging.close()

    assert still_hanging == 4 * others


def test_a_host_that_hung_gets_less_time_for_the_first_attempts_of_a_webhook_and_all_of_it_later(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis, deliveries: Deliveries
) -> None:
    redis_client.hset("mf:breaker:ant:hung.example.com", "hung", 1)
    create(ledger, "https://hung.example.com/", start_deadline_s=0)
    create(ledger, "https://well.example.com/", start_deadline_s=0)
    ledger.reap(max_attempts=3)
    due = {one.url: one for one in take_due(deliveries)}
    hung, well = due["https://hung.example.com/"], due["https://well.example.com/"]
    later = [replace(hung, attempts_since_queued=number) for number in (2, 3)]
    taken = [well, hung, *later, replace(hung, forced=True)]
    settings = CourierSettings(redis_url=redis_url, webhook_master_secrets=MASTER, webhook_timeout_s=15)

    assert [Courier(settings).time_limit_s(one) for one in taken] == [15, 5, 5, 15, 15]


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
    record = taking.claim(ledger, job_id, "node-1", lease_s=30, max_attempts=3)
    assert record is not None
    ledger.fail(record, "store_unavailable", "Gone.")
    ledger.retry(job_id, "ant", start_deadline_s=60, max_in_flight=10)

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)
        ledger.cancel(job_id, "ant")
        wait_until(lambda: receiver.requests and deliveries.waiting() == 0)

    [(headers, _)] = receiver.requests
    assert headers["webhook-id"] == f"msg_{job_id}_2_canceled"
    [dropped, _] = deliveries.of(job_id, "ant")
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
    [told] = deliveries.of(job_id, "ant")
    assert (told.state, [attempt.error for attempt in told.tries]) == (DeliveryState.REFUSED, ["url_not_allowed"])


def test_for_a_job_whose_worker_died_the_bell_is_rung_again(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis
) -> None:
    job_id = create(ledger)
    taking.claim(ledger, job_id, "node-1", lease_s=0.01, max_attempts=3)

    with courier(redis_url):
        wait_until(lambda: redis_client.llen(QUEUE) == 1)

    assert ledger.status(job_id) is Status.QUEUED


def test_bells_that_were_lost_are_rung_again_and_no_more_than_a_few(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis
) -> None:
    for _ in range(3 * MOST_BELLS):
        create(ledger)

    with courier(redis_url):
        wait_until(lambda: redis_client.llen(QUEUE) == MOST_BELLS)
        redis_client.delete(QUEUE)
        wait_until(lambda: redis_client.llen(QUEUE) == MOST_BELLS)


def test_all_leases_that_ran_out_at_once_are_taken_back_in_one_tick(
    ledger: Ledger, redis_url: str, redis_client: redis.Redis
) -> None:
    jobs = [create(ledger) for _ in range(250)]
    for _ in jobs:
        ledger.claim_next((QUEUE,), "node-1", lease_s=0, max_attempts=3)
    late = [create(ledger, start_deadline_s=0) for _ in range(250)]

    Courier(courier_settings(redis_url, tick_s=600))._reap()

    assert redis_client.zcard(f"mf:returned:{QUEUE}") == 250
    assert redis_client.exists("mf:leases", "mf:deadlines") == 0
    assert {ledger.status(job_id) for job_id in late} == {Status.EXPIRED}


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


def test_a_courier_mends_what_does_not_match_the_records(
    redis_url: str, redis_client: redis.Redis, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    create(ledger)
    redis_client.sadd("mf:inflight:ant", "job_" + "0" * 32)

    with courier(redis_url, reconcile_s=0.05):
        wait_until(lambda: redis_client.hget("mf:totals", "mended_in_flight") == "1", 20)
        wait_until(lambda: "reconciled" in capsys.readouterr().out, 20)

    assert redis_client.scard("mf:inflight:ant") == 1


def test_a_webhook_about_a_record_that_cannot_be_read_is_tried_again_and_holds_up_no_other(
    ledger: Ledger,
    redis_url: str,
    redis_client: redis.Redis,
    receive: Callable[..., Receiver],
    deliveries: Deliveries,
) -> None:
    receiver = receive()
    damaged, whole = succeed(ledger, receiver.url), succeed(ledger, receiver.url)
    redis_client.hset(f"mf:job:{damaged}", "created_ms", "long ago")

    with courier(redis_url):
        wait_until(lambda: deliveries.waiting() == 0)

    assert [verify_webhook(body, headers, SECRET).data.id for headers, body in receiver.requests] == [whole]
    [told] = deliveries.of(damaged, "ant")
    assert told.state is DeliveryState.GIVEN_UP
    assert [one.error for one in told.tries] == ["record_unreadable"] * 3
