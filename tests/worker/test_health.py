"""A worker's health checks, as an orchestrator uses them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.stack.servers import free_port
from maskfleet.worker.node.health import serve_health, why_not_ready


def worker(node: str = "sam-gpu0@host", idle_s: int = 0) -> WorkerSeen:
    return WorkerSeen(node, "sam-demo", "cpu", 12, 3, idle_s)


@pytest.mark.parametrize(
    ("workers", "ready"),
    [
        ([worker()], True),
        ([worker(idle_s=60)], True),
        ([worker(idle_s=61)], False),
        ([worker("sam-gpu1@other")], False),
        ([], False),
    ],
)
def test_a_worker_is_ready_while_messages_reach_it(workers: list[WorkerSeen], ready: bool) -> None:
    assert (why_not_ready(workers, "@host", ready_within_s=60) is None) == ready


@pytest.fixture
def address(redis_url: str, worker_registry: WorkerRegistry) -> Iterator[str]:
    settings = WorkerSettings(redis_url=redis_url, node="sam-cpu@host", health_port=free_port())
    server = serve_health(settings)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_readiness_is_asked_over_http(address: str, worker_registry: WorkerRegistry) -> None:
    before = requests.get(f"{address}/ready", timeout=5)
    worker_registry.announce(worker("sam-cpu@host"))
    well = requests.get(f"{address}/ready", timeout=5)
    worker_registry.announce(worker("sam-cpu@host", idle_s=1000))
    starved = requests.get(f"{address}/ready", timeout=5)

    assert (before.status_code, well.status_code, starved.status_code) == (503, 200, 503)
    assert "No message" in starved.text
    assert requests.get(f"{address}/live", timeout=5).status_code == 200


def test_a_worker_without_a_queue_is_not_ready() -> None:
    settings = WorkerSettings(redis_url="redis://127.0.0.1:1/0", node="sam-cpu@host", health_port=free_port())
    server = serve_health(settings)
    try:
        answer = requests.get(f"http://127.0.0.1:{server.server_port}/ready", timeout=20)
    finally:
        server.shutdown()
        server.server_close()

    assert answer.status_code == 503
    assert "queue_unavailable" in answer.text
