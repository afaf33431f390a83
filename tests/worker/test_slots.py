"""Slots, the workers that share a device: what befalls one of them, and what they know of each other."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.node.device import CPU, Device
from maskfleet.worker.node.names import device_of, host_of, node_names
from tests import taking
from tests.waiting import wait_until
from tests.worker.test_attempt import attempt_due, read, upload

QUEUE = "sam.stand-in.normal"
#: The stand-in takes 0.02 s for each of 20 × 20 points.
LONG = '{"mode":"everything","image":{"upload_id":"%s"},"params":{"points_per_crop":20}}'


@pytest.mark.parametrize(
    ("node", "device", "host"),
    [
        ("sam-gpu0.1@host", "sam-gpu0@host", "host"),
        ("sam-gpu-ab12cd34.12@a.b", "sam-gpu-ab12cd34@a.b", "a.b"),
        ("sam-gpu0@host.1", "sam-gpu0@host.1", "host.1"),
        ("worker.1@host", "worker.1@host", "host"),  # a name that an operator gave
        ("node-1", "node-1", "node-1"),
    ],
)
def test_a_name_tells_the_device_and_the_machine(node: str, device: str, host: str) -> None:
    assert (device_of(node), host_of(node)) == (device, host)


def test_names_of_slots_are_understood() -> None:
    gpu = Device("gpu3", "cuda", "3", "Card 3")
    alone, shared = node_names(gpu), node_names(gpu, 3)

    assert len({*alone, *shared}) == 4
    assert {device_of(name) for name in (*alone, *shared)} == set(alone)


# Whose fault it was: slots of one device are one witness.


@pytest.fixture
def slots(bench: Workbench) -> tuple[Workbench, Workbench, Workbench]:
    """Two slots of one device, and a node of another machine, all of which take jobs."""

    def node(name: str) -> Workbench:
        bench.worker_registry.announce(WorkerSeen(name, "sam-demo", "cpu", 1, 0))
        settings = bench.settings.model_copy(update={"node": name, "slots_per_device": 2 if "." in name else 1})
        return dataclasses.replace(bench, settings=settings)

    return node("sam-gpu0.0@here"), node("sam-gpu0.1@here"), node("sam-gpu0@there")


def test_a_job_that_a_slot_hands_back_is_left_to_other_devices(
    slots: tuple[Workbench, Workbench, Workbench], redis_client: redis.Redis
) -> None:
    one, neighbour, other = slots
    job_id = upload(one, b"")
    record = taking.claim(one.ledger, job_id, one.settings.node)
    assert record is not None
    one.ledger.release(record, delay_s=0, charged=False, avoid_s=30)

    assert not attempt_next(neighbour)
    assert read(one, job_id).status is Status.QUEUED
    assert attempt_next(other)


def test_a_neighbour_that_meets_the_same_is_no_second_witness(
    slots: tuple[Workbench, Workbench, Workbench], redis_client: redis.Redis
) -> None:
    one, neighbour, other = slots
    job_id = upload(one, b"gone")
    one.store.delete([found.key for found in one.store.listed("uploads/ant/")])

    for bench in (one, neighbour):
        redis_client.hdel(f"mf:job:{job_id}", "avoid")
        attempt_due(bench)
        assert (read(one, job_id).status, read(one, job_id).attempt) == (Status.QUEUED, 0)
    attempt_due(other)

    failed = read(one, job_id)
    assert (failed.status, failed.error and failed.error.code) == (Status.FAILED, "image_not_found")


def test_slots_of_the_only_device_are_alone_and_believed_when_patience_ends(
    slots: tuple[Workbench, Workbench, Workbench], worker_registry: WorkerRegistry
) -> None:
    one, _, other = slots
    worker_registry.withdraw(other.settings.node)
    job_id = upload(one, b"gone")
    one.store.delete([found.key for found in one.store.listed("uploads/ant/")])
    impatient = one.settings.model_copy(update={"outage_patience_s": 0})

    for _ in range(one.settings.max_attempts):
        attempt_due(dataclasses.replace(one, settings=impatient))

    failed = read(one, job_id)
    assert (failed.status, failed.error and failed.error.code) == (Status.FAILED, "image_not_found")


# Real processes.


@pytest.fixture
def fleet(
    redis_client: redis.Redis, shared_fields: dict[str, str], tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Two slots on the CPU, each a real Celery node whose model is a stand-in."""
    program = """
import os, sys
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.fleet import run_fleet
run_fleet("cpu", os.environ, WorkerSettings(), [sys.executable, "-m", "tests.faults.stand_in"])
"""
    own = {
        "MASKFLEET_MODEL": "./stand-in",
        "MASKFLEET_SLOTS_PER_DEVICE": "2",
        "MASKFLEET_LEASE_S": "2",
        "MASKFLEET_BEAT_S": "0.2",
        "MASKFLEET_DRAIN_GRACE_S": "0",
    }
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
    with (tmp_path / "fleet.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | settings | own, stderr=log)
        yield process
        process.terminate()
        process.wait()


def test_a_slot_that_is_killed_costs_its_neighbour_nothing_and_its_job_is_done_by_another(
    fleet: subprocess.Popen[bytes],
    ledger: Ledger,
    store: Store,
    redis_client: redis.Redis,
    redis_url: str,
    worker_registry: WorkerRegistry,
    coins: bytes,
) -> None:
    names = node_names(CPU, 2)
    wait_until(lambda: all(worker_registry.find(name) for name in names), 60)
    bells = Bells(redis_client, Publisher(SharedSettings(redis_url=redis_url)))
    spec = LONG % store.put_upload("ant", coins, "image/png")
    job = NewJobs(tenant="ant", queue=QUEUE, specs_json=(spec,), start_deadline_s=60)
    jobs = [ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id for _ in names]
    bells.ring(QUEUE, 2)
    wait_until(lambda: all(ledger.status(job) is Status.PROCESSING for job in jobs), 30)
    taken = {str(record.worker): record.id for job in jobs if (record := ledger.read(job))}
    assert sorted(taken) == sorted(names)  # each has one

    killed = worker_registry.find(names[0])
    assert killed is not None
    node = psutil.Process(killed.pid).parent()
    assert node is not None
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)

    wait_until(lambda: ledger.status(taken[names[1]]) is Status.SUCCEEDED, 60)
    neighbours = ledger.read(taken[names[1]])
    assert neighbours is not None
    assert (neighbours.attempt, neighbours.worker) == (1, names[1])
    wait_until(lambda: ledger.reap(max_attempts=3).requeued == 1, 30)  # as a courier does
    bells.ring(QUEUE)
    wait_until(lambda: ledger.status(taken[names[0]]) is Status.SUCCEEDED, 60)
    again = ledger.read(taken[names[0]])
    assert again is not None
    assert again.attempt == 2
    back = wait_until(lambda: (seen := worker_registry.find(names[0])) and seen.pid != killed.pid and seen, 60)
    assert back.node == names[0]
