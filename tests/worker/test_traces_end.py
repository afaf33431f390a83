"""A program that is told to end sends the spans that it has, whichever of its processes made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs, Origin
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import BELL, Publisher
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store
from maskfleet.stack.hook_server import HookServer
from maskfleet.stack.servers import free_port
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests.collector import Collector
from tests.conftest import WEBHOOK_MASTER
from tests.scenes import plain_scene
from tests.waiting import wait_until

pytest.importorskip("opentelemetry.proto", reason="The extra otel is not installed.")

ROOT = Path(__file__).parent.parent.parent
#: A span that is not sent at the end is not sent for as long as these tests may take.
NEVER = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
SPEC = '{"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}], "model": "stand-in", "image": {"upload_id": "%s"}}'

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(
    shared_fields: dict[str, str], collector: Collector, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program that sends its spans to the collector, and no sooner than it ends."""
    started = []

    def begin(*command: str, **settings: str) -> subprocess.Popen[bytes]:
        shared = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
        own = {"MASKFLEET_EGRESS_ALLOW_PRIVATE": "1", "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER}
        environment = {**os.environ, **shared, **own, **collector.environment, **NEVER, "PYTHONPATH": str(ROOT)}
        program = start_child(command, env={**environment, **settings}, log=tmp_path / "program.log", cwd=ROOT)
        started.append(program)
        return program

    yield begin
    for program in started:
        kill_child(program)


@contextmanager
def told_to_end(program: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send SIGTERM, and wait for the end."""
    program.send_signal(signal.SIGTERM)
    program.wait(30)
    yield


def trace_of_its_own() -> tuple[str, str]:
    trace = uuid.uuid4().hex
    return trace, f"00-{trace}-00f067aa0ba902b7-01"


def test_the_api_sends_what_its_processes_have(start: Start, collector: Collector) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    gunicorn = str(Path(sys.executable).parent / "gunicorn")
    settings = {"MASKFLEET_API_KEYS": "ant:a-key", "MASKFLEET_BIND": f"127.0.0.1:{port}", "MASKFLEET_PROCESSES": "1"}
    api = start(gunicorn, "--config", "python:maskfleet.api.server", "maskfleet.api.app:create_app()", **settings)
    wait_until(lambda: _responds(url), 60, every_s=0.1)
    trace, traceparent = trace_of_its_own()
    headers = {"Authorization": "Bearer a-key", "traceparent": traceparent}
    for path in ("/v1/models", f"/v1/jobs/job_{'0' * 32}", "/live", "/v1/no-such-thing"):
        requests.get(url + path, headers=headers, timeout=10)
    assert collector.trace(trace) == []

    with told_to_end(api):
        spans = collector.trace(trace)

    assert [(span.name, span.attributes["http.response.status_code"]) for span in spans] == [
        ("GET /v1/models", 200),
        ("GET /v1/jobs/<job_id>", 404),
    ]
    assert {(span.service, span.kind, span.failed) for span in spans} == {("maskfleet-api", "server", False)}


def test_a_worker_sends_what_its_child_has(
    start: Start, collector: Collector, ledger: Ledger, store: Store, worker_registry: WorkerRegistry, redis_url: str
) -> None:
    node = start(sys.executable, "-m", "tests.faults.stand_in", MASKFLEET_NODE="node-1", MASKFLEET_MODEL="./stand-in")
    wait_until(worker_registry.workers, 60, every_s=0.1)
    trace, traceparent = trace_of_its_own()
    upload, queue = (
        store.put_upload("ant", plain_scene(2, (160, 128)).png, "image/png"),
        queue_name("stand-in", Priority.NORMAL),
    )
    origin = Origin("order-7", traceparent)
    new = NewJobs(tenant="ant", queue=queue, specs_json=(SPEC % upload,), start_deadline_s=60, origin=origin)
    job = ledger.create(new, max_in_flight=9, idempotency_ttl_s=60).id
    Publisher(SharedSettings(redis_url=redis_url)).publish(BELL, queue)
    wait_until(lambda: ledger.status(job) is Status.SUCCEEDED, 30)

    with told_to_end(node):
        spans = collector.trace(trace)

    assert {"queue", "attempt", "fetch", "decode_image", "output coco", "upload"} <= {span.name for span in spans}
    assert {(span.service, span.instance) for span in spans} == {("maskfleet-worker", "node-1")}


def test_a_courier_sends_what_it_has(start: Start, collector: Collector, deliveries: Deliveries) -> None:
    came: list[bytes] = []
    with HookServer(lambda body, _: came.append(body) or 204) as receiver:  # type: ignore[func-returns-value]
        courier = start(sys.executable, "-m", "maskfleet.worker.courier.courier")
        sent = deliveries.ping("ant", receiver.url, "{}")
        wait_until(lambda: came and deliveries.waiting() == 0, 60, every_s=0.1)

        with told_to_end(courier):
            # The collector hears the whole suite, in which other couriers send pings.
            pings = collector.named("webhook ping")
            spans = [span for span in pings if span.attributes["maskfleet.delivery_id"] == sent]

    assert [span.attributes["http.response.status_code"] for span in spans] == [204]


def _responds(url: str) -> bool:
    try:
        return requests.get(f"{url}/live", timeout=3).status_code == 200
    except requests.RequestException:
        return False
