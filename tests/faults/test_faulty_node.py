"""A node that is wrong itself hands its jobs to the others, takes itself out, and comes back when it is well."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from maskfleet.jobs.storage import Store
from tests.faults.caller import Callers
from tests.faults.faults import Scene
from tests.faults.faults.on_processes import HOUR_S, clock_off, node_with_wrong_credentials
from tests.faults.laboratory import ACCESS_KEY, NODE_READY_S, SECRET_KEY, STAND_IN, Laboratory, Program
from tests.faults.proxy import Fault, Mode, Proxy
from tests.waiting import wait_until

BOX = f"box on {STAND_IN}"
LASTS_S = 90
#: Probe soon, so that a node that is well again is soon back.
SOON = {"MASKFLEET_PROBE_S": "0.2"}
_BODY = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>No.</Message></Error>'


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with Laboratory(tmp_path_factory.mktemp("laboratory"), nodes=0, stand_ins=2) as lab:
        yield lab


@pytest.fixture
def faulty(lab: Laboratory) -> Iterator[Program]:
    """The node to be made faulty: each test starts it with the settings that it needs."""
    faulty, other = lab.nodes
    faulty.log.write_text("")
    other.run_with()
    yield faulty
    faulty.kill()
    lab.redis.delete(f"mf:worker:{faulty.name}:faults")


@pytest.fixture(scope="module")
def way(lab: Laboratory) -> Iterator[Proxy]:
    """The way by which a node reaches S3, so that the store can begin to refuse."""
    with Proxy(lab.s3_server.port) as way:
        yield way


@pytest.fixture
def well(lab: Laboratory, way: Proxy) -> Iterator[Program]:
    """A node that takes jobs, and reaches S3 by the way; one process for all kinds of refusal."""
    well, other = lab.nodes
    well.run_with(**SOON, MASKFLEET_S3_ENDPOINT=f"http://127.0.0.1:{way.port}")
    other.run_with()
    wait_until(lambda: takes_jobs(lab, well) and takes_jobs(lab, other), NODE_READY_S)
    well.log.write_text("")
    yield well
    way.heal()
    lab.redis.delete(f"mf:worker:{well.name}:faults")


def refusal(status: int, code: bytes) -> Fault:
    """A store that refuses everything."""
    body = _BODY % code
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return Fault(Mode.ANSWER, answer=head % (status, len(body)) + body)


def withdrawn(lab: Laboratory, node: Program) -> str:
    """Return why the node that runs now has withdrawn; nothing while it has not, or is not yet known."""
    seen = lab.worker_registry.find(node.name)
    return seen.fault if seen and lab.child_of(node) else ""


def takes_jobs(lab: Laboratory, node: Program) -> bool:
    seen = lab.worker_registry.find(node.name)
    return seen is not None and not seen.fault and lab.child_of(node) is not None


def does_one_of(jobs: int, lab: Laboratory, node: Program, callers: Callers) -> bool:
    """Send that many jobs at once, for both nodes; return whether all succeed, one of them on this node."""
    sent = [callers.send(BOX) for _ in range(jobs)]
    wait_until(lambda: all((status := lab.ledger.status(job)) and status.ended for job in sent), LASTS_S)
    assert {lab.ledger.status(job) for job in sent} == {"succeeded"}
    ends = [lab.ledger.attempts(job)[-1] for job in sent]
    return any(end.worker == node.name and end.outcome == "succeeded" for end in ends)


@pytest.mark.parametrize(
    "refused",
    [
        refusal(403, b"InvalidAccessKeyId"),
        refusal(400, b"ExpiredToken"),
        refusal(403, b"AccessDenied"),
        refusal(404, b"NoSuchBucket"),
        refusal(404, b"NoSuchKey"),
    ],
    ids=["unknown key", "expired token", "access denied", "no bucket", "no upload"],
)
def test_a_node_that_the_store_begins_to_refuse_costs_no_job_anything_and_withdraws(
    lab: Laboratory, way: Proxy, well: Program, refused: Fault
) -> None:
    callers = Callers(lab, seed=1)
    process = lab.child_of(well)
    way.set(refused)

    jobs = [callers.send(BOX) for _ in range(40)]
    wait_until(lambda: all((status := lab.ledger.status(job)) and status.ended for job in jobs), LASTS_S)

    records = [lab.ledger.read(job) for job in jobs]
    assert [record.status if record else None for record in records] == ["succeeded"] * 40
    assert [record.attempt if record else None for record in records] == [1] * 40
    wait_until(lambda: withdrawn(lab, well), LASTS_S)
    assert "node_withdrawn" in well.log.read_text()
    met = [one for job in jobs for one in lab.ledger.attempts(job) if one.worker == well.name]
    assert {one.outcome for one in met} <= {"store_misconfigured", "image_not_found", "succeeded"}
    metrics = lab.ask("GET", "/metrics").text
    assert f'maskfleet_workers_ready{{model="{STAND_IN}"}} 1.0' in metrics
    assert f'maskfleet_workers_withdrawn{{model="{STAND_IN}"}} 1.0' in metrics

    way.heal()

    wait_until(lambda: takes_jobs(lab, well), LASTS_S)
    wait_until(lambda: does_one_of(8, lab, well, callers), LASTS_S)
    assert lab.child_of(well) == process


@pytest.mark.parametrize(
    "settings",
    [
        {"MASKFLEET_S3_SECRET_KEY": "another"},
        {"MASKFLEET_S3_ACCESS_KEY": "somebody"},
        {"MASKFLEET_BUCKET": "elsewhere"},
        clock_off(HOUR_S),
    ],
    ids=["wrong secret", "unknown key", "no such bucket", "clock an hour off"],
)
def test_a_node_that_starts_wrong_takes_no_job(lab: Laboratory, faulty: Program, settings: Mapping[str, str]) -> None:
    callers = Callers(lab, seed=1)
    faulty.restart(**SOON, **settings)
    wait_until(lambda: withdrawn(lab, faulty), LASTS_S)

    jobs = [callers.send(BOX) for _ in range(10)]
    wait_until(lambda: all((status := lab.ledger.status(job)) and status.ended for job in jobs), LASTS_S)

    attempts = [attempt for job in jobs for attempt in lab.ledger.attempts(job)]
    assert {(one.worker == faulty.name, one.outcome) for one in attempts} == {(False, "succeeded")}
    assert not takes_jobs(lab, faulty)


def test_a_node_with_another_bucket_that_exists_writes_no_result_there(lab: Laboratory, faulty: Program) -> None:
    beside = Store(lab.store._settings.model_copy(update={"bucket": "beside"}))
    beside.make_bucket()
    faulty.restart(**SOON, MASKFLEET_BUCKET=beside.bucket)
    [other] = [one for one in lab.nodes if one is not faulty]
    other.kill()

    job = Callers(lab, seed=1).send(BOX)
    wait_until(lambda: any(one.outcome == "store_misconfigured" for one in lab.ledger.attempts(job)), LASTS_S)
    other.start()
    wait_until(lambda: lab.ledger.status(job) == "succeeded", LASTS_S)

    record = lab.ledger.read(job)
    assert record is not None
    assert record.attempt == 1
    assert [found.key for found in beside.listed("results/") if job in found.key] == []


def test_a_node_comes_back_by_itself_once_its_credentials_file_is_right(
    lab: Laboratory, faulty: Program, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    text = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = "
    file.write_text(f"{text}rotated-away\n")
    faulty.restart(
        **SOON, MASKFLEET_S3_ACCESS_KEY="", MASKFLEET_S3_SECRET_KEY="", AWS_SHARED_CREDENTIALS_FILE=str(file)
    )
    wait_until(lambda: withdrawn(lab, faulty), LASTS_S)

    file.write_text(f"{text}{SECRET_KEY}\n")

    wait_until(lambda: takes_jobs(lab, faulty), LASTS_S)
    callers = Callers(lab, seed=1)
    wait_until(lambda: does_one_of(8, lab, faulty, callers), LASTS_S)


def test_what_is_wrong_everywhere_fails_the_job_and_blames_the_service(
    lab: Laboratory, way: Proxy, faulty: Program
) -> None:
    callers = Callers(lab, seed=1)
    for node in lab.nodes:
        node.run_with(**SOON, MASKFLEET_S3_ENDPOINT=f"http://127.0.0.1:{way.port}")
    wait_until(lambda: all(takes_jobs(lab, node) for node in lab.nodes), NODE_READY_S)
    way.set(refusal(403, b"AccessDenied"))

    job = callers.send(BOX)
    wait_until(lambda: lab.ledger.status(job) == "failed", LASTS_S)
    way.heal()

    record = lab.ledger.read(job)
    assert record is not None
    assert record.error is not None
    assert record.error.code == "store_misconfigured"
    attempts = lab.ledger.attempts(job)
    assert {attempt.worker for attempt in attempts} == {node.name for node in lab.nodes}


def test_a_node_that_has_withdrawn_still_shuts_down(lab: Laboratory, faulty: Program) -> None:
    faulty.restart(**SOON, MASKFLEET_S3_SECRET_KEY="another")
    wait_until(lambda: withdrawn(lab, faulty), LASTS_S)
    [other] = [one for one in lab.nodes if one is not faulty]
    other.kill()
    job = Callers(lab, seed=1).send(BOX)
    ending = faulty.pid

    os.kill(ending, signal.SIGTERM)

    wait_until(lambda: not faulty.is_running() or faulty.pid != ending, LASTS_S)
    other.start()
    wait_until(lambda: lab.ledger.status(job) == "succeeded", LASTS_S)


def test_the_laboratory_has_a_fault_of_that_kind(lab: Laboratory, faulty: Program) -> None:
    faulty.run_with()
    lab.await_nodes()

    effect = node_with_wrong_credentials(Scene(lab, random.Random(1), lambda: None))

    assert effect.acted
    wait_until(lambda: all(takes_jobs(lab, node) for node in lab.nodes), LASTS_S)
