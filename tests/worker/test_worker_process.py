"""A real Celery node, from start to end: the queue, the child process that holds the model, and its death."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
import requests

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.messages import BELL, Publisher
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import free_port
from maskfleet.worker.node.health import why_not_ready
from tests.waiting import wait_until

SPEC = '{"mode":"box","image":{"upload_id":"%s"},"prompts":[{"box":[20,20,80,80]}]}'
SLOW_SPEC = '{"mode":"everything","image":{"upload_id":"%s"},"params":{"points_per_batch":1}}'
#: A quarter of that, for the job whose process is killed as soon as it has begun, and which is then done.
KILLED_SPEC = '{"mode":"everything","image":{"upload_id":"%s"},"params":{"points_per_crop":16,"points_per_batch":1}}'


@pytest.fixture
def health_port() -> int:
    return free_port()


@pytest.fixture
def node(
    redis_client: redis.Redis, shared_fields: dict[str, str], demo_model: str, tmp_path: Path, health_port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A node with the bundled model, on an empty queue."""
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
    own = {
        "MASKFLEET_MODEL": demo_model,
        "MASKFLEET_NODE": "node-1",
        "MASKFLEET_LEASE_S": "2",
        "MASKFLEET_BEAT_S": "0.2",
        "MASKFLEET_CANARY_S": "0.5",
        "MASKFLEET_DRAIN_GRACE_S": "0.5",
        "MASKFLEET_HEALTH_PORT": str(health_port),
    }
    with (tmp_path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskfleet.worker"],
            env=os.environ | settings | own | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        yield process
        process.kill()
        process.wait()


def the_worker(worker_registry: WorkerRegistry, deadline_s: float = 60) -> WorkerSeen:
    return wait_until(worker_registry.workers, deadline_s)[0]


def publish(
    ledger: Ledger,
    store: Store,
    redis_url: str,
    photo: bytes,
    spec: str = SPEC,
    *,
    priority: Priority = Priority.NORMAL,
) -> str:
    queue = queue_name("sam-demo", priority)
    upload_id = store.put_upload("ant", photo, "image/png")
    job = NewJobs(tenant="ant", queue=queue, specs_json=(spec % upload_id,), start_deadline_s=60)
    job_id = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id
    Publisher(SharedSettings(redis_url=redis_url)).publish(BELL, queue)
    return job_id


def test_a_node_works_outlives_its_child_and_ends_when_told(
    node: subprocess.Popen[bytes],
    ledger: Ledger,
    store: Store,
    redis_url: str,
    repository: Path,
    worker_registry: WorkerRegistry,
    health_port: int,
) -> None:
    def figures() -> dict[str, float]:
        shown = requests.get(f"http://127.0.0.1:{health_port}/metrics", timeout=5).text
        return {name: float(value) for name, value in re.findall(r"^(maskfleet_\S+) (\S+)$", shown, re.MULTILINE)}

    photo = (repository / "examples" / "coins.png").read_bytes()
    first_child = the_worker(worker_registry)

    # It works.
    job_id = publish(ledger, store, redis_url, photo)
    wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 30)
    assert first_child.model == "sam-demo"
    wait_until(lambda: figures().get('maskfleet_worker_jobs_total{outcome="succeeded"}') == 1, 30)
    for stage in ("import", "load", "device", "compile", "test", "canary"):
        assert 0 < figures()[f'maskfleet_worker_start_seconds{{stage="{stage}"}}'] < 120
    assert figures()['maskfleet_worker_stage_seconds_sum{stage="embed"}'] > 0

    # Its child is killed mid-job: another one takes over, and the reaper hands the job back.
    job_id = publish(ledger, store, redis_url, photo, KILLED_SPEC)
    wait_until(lambda: ledger.status(job_id) is Status.PROCESSING, 30)
    os.kill(first_child.pid, signal.SIGKILL)
    wait_until(lambda: [one.state for one in worker_registry.workers(loading=True)] == ["starting"], 60)
    wait_until(lambda: [worker for worker in worker_registry.workers() if worker.pid != first_child.pid], 60)
    wait_until(lambda: ledger.reap(max_attempts=3).requeued == 1, 30)
    Publisher(SharedSettings(redis_url=redis_url)).publish(BELL, queue_name("sam-demo", Priority.NORMAL))
    wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 90)
    record = ledger.read(job_id)
    assert record is not None
    assert record.attempt == 2
    wait_until(lambda: figures()['maskfleet_worker_jobs_total{outcome="succeeded"}'] == 2, 30)

    # It starves while its parent does not consume, which is detected; then it takes the most urgent job first.
    os.kill(node.pid, signal.SIGSTOP)
    wait_until(lambda: why_not_ready(worker_registry.workers(), "node-1", ready_within_s=2), 30)
    jobs = [
        publish(ledger, store, redis_url, photo, priority=priority)
        for priority in (Priority.BULK, Priority.NORMAL, Priority.INTERACTIVE)
    ]
    os.kill(node.pid, signal.SIGCONT)
    wait_until(lambda: all(ledger.status(job) is Status.SUCCEEDED for job in jobs), 60)
    bulk, normal, interactive = (ledger.read(job).started_ms for job in jobs)  # type: ignore[union-attr]  # it is there
    assert interactive < normal < bulk
    wait_until(lambda: why_not_ready(worker_registry.workers(), "node-1", ready_within_s=2) is None, 30)

    # It is shut down mid-job, and hands the job back.
    job_id = publish(ledger, store, redis_url, photo, SLOW_SPEC)
    wait_until(lambda: ledger.status(job_id) is Status.PROCESSING, 30)
    family = psutil.Process(node.pid).children(recursive=True)
    node.send_signal(signal.SIGTERM)
    assert node.wait(20) == 0
    record = ledger.read(job_id)
    assert record is not None
    assert (record.status, record.attempt) == (Status.QUEUED, 0)
    wait_until(lambda: all(not process.is_running() or process.status() == "zombie" for process in family))
    assert worker_registry.workers() == []
