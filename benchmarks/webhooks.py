"""Measure how webhooks fare when their receiver fails, and how many a courier sends per second.

    python -m benchmarks.webhooks

A real Redis, the ledger and one courier process run on this machine, with the receiver: threads of this
process that verify every signature.  First, with a healthy receiver: all events are queued, the courier starts,
and the time from the first arrival to the last is measured; once for one host, once for eight.  Then with a failing
one: for a minute nothing listens while the jobs end; from then on 30 % of requests are answered with 500 and 5 % are
never answered.  The schedule has as many attempts as the default one, within seconds; the time limit is shorter, too.
Last, a tenant whose receiver answers beside others with forty hosts each that accept connections and never answer, with
the default time limit: its webhooks all at once as the others' first attempts hang, and then one each second.
"""

from __future__ import annotations

import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.machine import keep, percentile, spread
from maskfleet.client.webhooks import verify_webhook
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.record import Metrics, ResultSummary
from maskfleet.jobs.schema.spec import Webhook
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.servers import free_port, start_redis

EVENTS, RUNS = 2000, 3
DOWN_S, FAILING, HANGING = 60.0, 0.30, 0.05
SCHEDULE_S = (0, 1, 2, 4, 8, 10, 10, 10, 10, 10)
TIMEOUT_S, BREAKER_S, TICK_S = 2.0, 1.0, 0.2
OTHERS, HOSTS, PER_HOST, OF_THE_WELL, LONGEST_S = (0, 1, 2, 4), 40, 5, 60, 90.0
TENANT, MASTER = "bench", "whsec_" + "c2VjcmV0" * 4
SECRET = tenant_secret(MASTER, TENANT)
SPEC = '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"metadata":{"order":"42"}}'
RESULT = ResultSummary(prefix="p/", manifest_key="p/m", masks=3, best_score=0.9, metrics=Metrics())


class Receiver:
    """Listen on a port inside ``with``; record every request, and respond at random."""

    def __init__(self, port: int, *, failing: float = 0.0, hanging: float = 0.0) -> None:
        self.tries: dict[str, list[int]] = defaultdict(list)  # webhook id → status of the response, 0 for none
        self.bodies: dict[str, set[bytes]] = defaultdict(set)
        self.arrived: dict[str, float] = {}
        self._news = threading.Condition()
        lot = random.Random(1)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                verify_webhook(body, dict(self.headers), SECRET)
                drawn = lot.random()
                answer = 500 if drawn < failing else 0 if drawn < failing + hanging else 204
                receiver._note(self.headers["webhook-id"], body, answer)
                if answer == 0:
                    time.sleep(2 * TIMEOUT_S)
                    self.close_connection = True
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _note(self, webhook_id: str, body: bytes, answer: int) -> None:
        with self._news:
            self.tries[webhook_id].append(answer)
            self.bodies[webhook_id].add(body)
            if answer == 204:
                self.arrived.setdefault(webhook_id, time.monotonic())
            self._news.notify_all()

    def wait_for(self, events: int, timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: len(self.arrived) >= events, timeout_s)


class Service:
    """A separate Redis, and a courier process on demand."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder, self._redis_url = folder, redis_url
        self.redis = connect(SharedSettings(redis_url=redis_url))
        self.ledger = Ledger(self.redis, retention_s=3600)
        self.deliveries = Deliveries(self.redis)

    @contextmanager
    def courier(self, **changes: str) -> Iterator[None]:
        """Run a courier; changes: settings, by their names in the environment without the prefix."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKFLEET_")}
        environment |= {
            "MASKFLEET_REDIS_URL": self._redis_url,
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": MASTER,
            "MASKFLEET_WEBHOOK_SCHEDULE_S": ",".join(str(wait) for wait in SCHEDULE_S),
            "MASKFLEET_WEBHOOK_TIMEOUT_S": str(TIMEOUT_S),
            "MASKFLEET_WEBHOOK_BREAKER_S": str(BREAKER_S),
            "MASKFLEET_TICK_S": str(TICK_S),
            "MASKFLEET_SWEEP_S": "0",
            "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1",
            **{f"MASKFLEET_{name}": value for name, value in changes.items()},
        }
        with (self._folder / "courier.log").open("a") as log:
            courier = subprocess.Popen(
                [sys.executable, "-m", "maskfleet.worker.courier.courier"], env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            courier.terminate()
            courier.wait(60)

    def end_a_job(self, url: str, tenant: str = TENANT) -> str:
        """Run a job to its end; return the id of the webhook that this queues."""
        job = NewJobs(tenant, "sam.bench.normal", (SPEC,), 600, Webhook(url=url))
        job_id = self.ledger.create(job, max_in_flight=EVENTS, idempotency_ttl_s=60).id
        record = self.ledger.claim_next(("sam.bench.normal",), "node", lease_s=600, max_attempts=3).record
        if record is None:
            raise SystemExit("a job could not be claimed")
        self.ledger.succeed(record, RESULT)
        return f"msg_{job_id}_1_succeeded"


def well(service: Service, hosts: int) -> dict[str, float]:
    """Time the arrival of all events at that many hosts, from when the courier begins to send."""
    with ExitStack() as receivers:
        ports = [free_port() for _ in range(hosts)]
        listening = [receivers.enter_context(Receiver(port)) for port in ports]
        for number in range(EVENTS):
            service.end_a_job(f"http://127.0.0.1:{ports[number % hosts]}/hook")
        with service.courier():
            if not all(receiver.wait_for(EVENTS // hosts, 300) for receiver in listening):
                raise SystemExit("not all webhooks arrived")
        times = [at for receiver in listening for at in receiver.arrived.values()]
    return {"events_per_s": EVENTS / (max(times) - min(times))}


def failing(service: Service) -> dict[str, object]:
    """Keep the receiver down while the jobs end, and let it fail at random afterwards."""
    port = free_port()
    with service.courier():
        began = time.monotonic()
        ids = []
        for number in range(EVENTS):
            time.sleep(max(0.0, began + DOWN_S * number / EVENTS - time.monotonic()))
            ids.append(service.end_a_job(f"http://127.0.0.1:{port}/hook"))
        time.sleep(max(0.0, began + DOWN_S - time.monotonic()))
        with Receiver(port, failing=FAILING, hanging=HANGING) as receiver:
            back = time.monotonic()
            receiver.wait_for(EVENTS, 600)
            while service.deliveries.waiting() and time.monotonic() < back + 600:
                time.sleep(0.1)
    states: Counter[str] = Counter()
    while_down, most_tries = 0, 0
    for delivery_id in ids:
        record = service.deliveries.read(delivery_id, TENANT)
        if record is None:
            raise SystemExit("a delivery was forgotten")
        states[record.state] += 1
        while_down += sum(attempt.status is None and attempt.error == "ConnectionError" for attempt in record.tries)
        most_tries = max(most_tries, len(record.tries))
    after_s = [at - back for at in receiver.arrived.values()]
    answers = Counter(answer for answered in receiver.tries.values() for answer in answered)
    return {
        "events": EVENTS,
        "delivered": states["delivered"],
        "not_delivered": EVENTS - states["delivered"],
        "ids_that_were_not_expected": len(set(receiver.tries) - set(ids)),
        "ids_with_several_bodies": sum(len(bodies) > 1 for bodies in receiver.bodies.values()),
        "answered_well_more_than_once": sum(answers.count(204) > 1 for answers in receiver.tries.values()),
        "answers": {"204": answers[204], "500": answers[500], "none": answers[0]},
        "tries_while_down": while_down,
        "most_tries_of_one": most_tries,
        "s_until_the_first_arrived": round(min(after_s), 1),
        "s_until_half_arrived": round(percentile(after_s, 50), 1),
        "s_until_all_arrived": round(max(after_s), 1),
        "events_per_s_after_the_return": round(EVENTS / max(after_s), 1),
    }


def _tried(service: Service, delivery_id: str, tenant: str) -> bool:
    record = service.deliveries.read(delivery_id, tenant)
    return record is not None and len(record.tries) > 0


def beside_hanging(service: Service, others: int) -> dict[str, object]:
    """Time a well tenant's webhooks beside that many tenants whose receivers hang on many hosts."""
    service.redis.flushall()
    with ExitStack() as open_now:
        receiver = open_now.enter_context(Receiver(port := free_port()))
        url = f"http://127.0.0.1:{port}/hook"
        for number in range(others):
            for _ in range(HOSTS):
                host = open_now.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
                for _ in range(PER_HOST):
                    service.end_a_job(f"http://127.0.0.1:{host.getsockname()[1]}/", f"hanging-{number}")
        open_now.enter_context(service.courier(WEBHOOK_TIMEOUT_S="15", WEBHOOK_BREAKER_S="10", TICK_S="1"))
        first = service.end_a_job(f"http://127.0.0.1:{free_port()}/", "first")
        while not _tried(service, first, "first"):
            time.sleep(0.05)  # the courier is starting
        began = time.monotonic()
        for _ in range(OF_THE_WELL):
            service.end_a_job(url)
        receiver.wait_for(OF_THE_WELL, LONGEST_S)
        arrived = list(receiver.arrived.values())
        in_turn = time.monotonic()
        ended: dict[str, float] = {}
        for number in range(OF_THE_WELL):
            time.sleep(max(0.0, in_turn + number - time.monotonic()))
            ended[service.end_a_job(url)] = time.monotonic()
        receiver.wait_for(2 * OF_THE_WELL, LONGEST_S)
        late_s = [receiver.arrived.get(one, math.inf) - at for one, at in ended.items()]
    return {
        "arrived_of_60_at_once": len(arrived),
        "s_until_the_last_of_these": round(max(arrived, default=math.inf) - began, 2),
        "arrived_of_60_in_turn": sum(late < math.inf for late in late_s),
        "s_from_end_to_arrival_median": round(percentile(late_s, 50), 2),
        "s_from_end_to_arrival_longest": round(max(late_s), 2),
    }


def main() -> None:
    """Measure, and store the figures."""
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        redis = start_redis(folder / "redis", log=folder / "redis.log")
        try:
            service = Service(folder, redis.url)
            for hosts in (1, 8):
                runs = [well(service, hosts)["events_per_s"] for _ in range(RUNS)]
                figures[f"a receiver that is well, {hosts} host{'s' if hosts > 1 else ''}"] = {
                    "events_per_s": spread(runs)
                }
            figures["a receiver that is down for 60 s, then answers 30 % with 500 and 5 % not at all"] = failing(
                service
            )
            for others in OTHERS:
                name = f"a tenant that is well beside {others} whose receivers hang on {HOSTS} hosts each"
                figures[name] = beside_hanging(service, others)
        finally:
            redis.stop()
    settings = {"schedule_s": SCHEDULE_S, "timeout_s": TIMEOUT_S, "breaker_s": BREAKER_S, "tick_s": TICK_S}
    keep("webhooks", "python -m benchmarks.webhooks", {"settings": settings, **figures})


if __name__ == "__main__":
    main()
