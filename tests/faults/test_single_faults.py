"""Each promise with the one fault that threatens it most, on real processes."""

from __future__ import annotations

import os
import random
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle

import pytest

from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.jobs import __doc__ as ledger_described
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.storage import manifest_key
from tests.faults.caller import Callers, stored
from tests.faults.faults import LASTING, Effect, Scene
from tests.faults.faults.on_processes import (
    HOUR_S,
    api_cut_off_at_bell,
    api_killed_between_record_and_bell,
    clock_off,
)
from tests.faults.faults.on_redis import redis_full
from tests.faults.history import Notified
from tests.faults.laboratory import LEASE_S, STAND_IN, TENANT, Laboratory
from tests.faults.promises import DEVICE_LOST, HUNG, POISONED, STARTED
from tests.faults.run import TRIES
from tests.waiting import wait_until

BOX = f"box on {STAND_IN}"
LASTS_S = 60
#: A line of the table in the ledger's docstring: names, and the types of their values.
DESCRIBED_KEYS = re.compile(r"^    (\S+(?:, \S+)*) +((?:string|hash|set|zset|list)\b[a-z, ]*?)  ", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """A laboratory with two stand-in nodes, and callers."""

    lab: Laboratory
    callers: Callers

    @property
    def scene(self) -> Scene:
        return Scene(self.lab, random.Random(1), lambda kind: self.callers.hold(kind, STAND_IN))

    def record(self, job: str) -> JobRecord:
        record = self.lab.ledger.read(job)
        assert record is not None
        return record

    def ended(self, job: str) -> JobRecord:
        wait_until(lambda: self.record(job).status.ended, LASTS_S, every_s=0.05)
        return self.record(job)

    def told(self, job: str) -> list[Notified]:
        """Return how its end was reported to its owner."""
        told = (sight for sight in self.lab.history.read() if isinstance(sight, Notified) and sight.job == job)
        return [sight for sight in told if sight.event != STARTED]

    def fenced(self) -> int:
        return JobCounts(self.lab.redis).totals().get("fenced", 0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Laboratory(tmp_path_factory.mktemp("laboratory"), nodes=0, stand_ins=2) as lab:
        yield Stage(lab, Callers(lab, seed=1))


def test_a_worker_that_was_frozen_past_its_lease_changes_nothing_any_more(stage: Stage) -> None:
    held = stage.scene.hold(LASTING)
    assert held is not None
    fenced = stage.fenced()

    with held.node.frozen():
        time.sleep(2 * LEASE_S)
        record = stage.ended(held.job)  # by the other node

    wait_until(lambda: stage.fenced() > fenced, LASTS_S)
    wait_until(lambda: "job_fenced" in held.node.log.read_text(), LASTS_S)
    assert stage.record(held.job) == record
    assert (record.status, record.attempt) == ("succeeded", 2)
    assert record.worker != held.node.name


def test_a_job_whose_worker_dies_is_done_by_another_within_the_lease(stage: Stage) -> None:
    held = stage.scene.hold(LASTING)
    assert held is not None

    died = time.monotonic()
    os.kill(held.node.pid, signal.SIGKILL)
    wait_until(lambda: stage.record(held.job).attempt == 2, LASTS_S)

    assert time.monotonic() - died < LEASE_S + 5
    assert stage.ended(held.job).status == "succeeded"


def test_a_job_that_kills_its_workers_fails_after_its_last_attempt(stage: Stage) -> None:
    killed = len(stage.lab.images.killed)

    job = stage.callers.send(f"{POISONED} on {STAND_IN}")
    record = stage.ended(job)

    assert record.error is not None
    assert (record.status, record.error.code) == ("failed", "attempts_exhausted")
    assert len(stage.lab.images.killed) - killed == record.attempt == 3


def test_a_job_that_hangs_in_a_call_is_ended_at_its_time_with_its_process(stage: Stage) -> None:
    children = {node.name: stage.lab.child_of(node) for node in stage.lab.nodes}

    record = stage.ended(stage.callers.send(f"{HUNG} on {STAND_IN}"))

    assert record.error is not None
    assert (record.status, record.error.code, record.attempt) == ("failed", "timeout", 1)
    assert record.worker is not None
    node = stage.lab.programs[record.worker]
    wait_until(lambda: stage.lab.child_of(node) not in (None, children[node.name]), LASTS_S)


def test_a_hung_job_that_is_canceled_is_ended_by_force(stage: Stage) -> None:
    job = stage.callers.send(f"{HUNG} on {STAND_IN}")
    wait_until(lambda: stage.record(job).status == "processing", LASTS_S)

    assert stage.lab.ask("POST", f"/v1/jobs/{job}/cancel").status_code == 202

    assert stage.ended(job).status == "canceled"
    stage.lab.await_nodes()


def test_a_lost_device_is_met_by_no_second_job(stage: Stage) -> None:
    """Every further call in the process would fail, so the process exits."""
    node, other = stage.lab.nodes
    other.kill()
    child = stage.lab.child_of(node)
    losing = stage.callers.send(f"{DEVICE_LOST} on {STAND_IN}")
    [broken, *_] = wait_until(lambda: [one for one in stage.lab.ledger.attempts(losing) if one.outcome], LASTS_S)
    stage.lab.ask("POST", f"/v1/jobs/{losing}/cancel")

    record = stage.ended(stage.callers.send(BOX))

    other.start()
    stage.lab.await_nodes()
    assert (broken.worker, broken.outcome) == (node.name, "device_lost")
    assert stage.lab.child_of(node) != child
    assert (record.status, record.attempt) == ("succeeded", 1)


def test_a_node_that_is_told_to_end_hands_its_job_back_uncharged(stage: Stage) -> None:
    held = stage.scene.hold(LASTING)
    assert held is not None

    os.kill(held.node.pid, signal.SIGTERM)
    record = stage.ended(held.job)

    assert (record.status, record.attempt) == ("succeeded", 1)
    assert [attempt.outcome for attempt in stage.lab.ledger.attempts(held.job)] == ["drained", "succeeded"]
    stage.lab.await_nodes()


@pytest.mark.parametrize("fault", [api_killed_between_record_and_bell, api_cut_off_at_bell])
def test_a_job_that_was_recorded_and_not_rung_for_is_found_by_its_key_and_done(
    stage: Stage, fault: Callable[[Scene], Effect]
) -> None:
    for _ in range(TRIES):  # on a busy machine the courier's tick may be the first to ring
        effect, job = _struck_while_sending(stage, fault)
        if effect.acted:
            break

    assert effect == Effect(acted=True, text=f"recorded and not heard of: {job}")
    assert stage.ended(job).status == "succeeded"


def _struck_while_sending(stage: Stage, fault: Callable[[Scene], Effect]) -> tuple[Effect, str]:
    with ThreadPoolExecutor(1) as caller:
        sending = caller.submit(lambda: time.sleep(0.5) or stage.callers.send(BOX, key=uuid.uuid4().hex))
        effect = fault(stage.scene)
        return effect, sending.result(LASTS_S)


def test_a_full_redis_answers_503_and_records_nothing(stage: Stage) -> None:
    before = set(stage.lab.redis.scan_iter("mf:job:*"))

    effect = redis_full(stage.scene)

    assert effect == Effect(acted=True, text="submits were answered [503, 503, 503]")
    assert set(stage.lab.redis.scan_iter("mf:job:*")) == before
    assert stage.ended(stage.callers.send(BOX)).status == "succeeded"


def test_what_was_accepted_and_what_has_ended_outlive_redis(stage: Stage) -> None:
    ended = stage.record(stage.ended(stage.callers.send(BOX)).id)
    accepted = [stage.callers.send(BOX) for _ in range(5)]

    os.kill(stage.lab.redis_server.pid, signal.SIGKILL)
    stage.lab.redis_server.process.wait()
    stage.lab.start_redis_again()

    assert stage.record(ended.id) == ended
    assert [stage.ended(job).status for job in accepted] == ["succeeded"] * 5


def test_an_attempt_that_comes_late_leaves_one_manifest(stage: Stage) -> None:
    """Its node is frozen while it sends its manifest, and the request is broken off: once awake, it sends it again."""
    held = stage.scene.hold(LASTING)
    assert held is not None
    fenced = stage.fenced()
    frozen = ExitStack()
    key = manifest_key(TENANT, held.job)
    stage.lab.s3_way.watch(f"PUT /maskfleet/{key} ".encode(), lambda: frozen.enter_context(held.node.frozen()))

    with frozen:
        record = stage.ended(held.job)  # by the other node
        seen = stored(stage.lab.store, held.job)
    wait_until(lambda: '"event_lost": "job_succeeded"' in held.node.log.read_text(), LASTS_S)
    later = stored(stage.lab.store, held.job)

    assert stage.fenced() > fenced
    assert (record.worker != held.node.name, record.attempt) == (True, 2)
    assert (later.manifest, later.attempt, later.whole) == (seen.manifest, 2, True)


@pytest.mark.parametrize("off_s", [-600, 600])
def test_no_clock_but_redis_own_enters_the_ledger(stage: Stage, off_s: int) -> None:
    """The clocks of the API and the couriers are off by more than a receiver tolerates, but less than S3 refuses."""
    began_ms = int(time.time() * 1000)
    programs = [stage.lab.programs["api"], *stage.lab.couriers]
    for program in programs:
        program.restart(**clock_off(off_s))
    wait_until(stage.lab.api_is_ready, LASTS_S, every_s=0.1)

    record = stage.ended(stage.callers.send(BOX))
    [told] = wait_until(lambda: stage.told(record.id), LASTS_S)

    assert [program.ended_by_itself for program in programs] == [0, 0, 0]
    for program in programs:
        program.restart()
    wait_until(stage.lab.api_is_ready, LASTS_S, every_s=0.1)
    assert record.status == "succeeded"
    assert record.started_ms is not None
    assert record.ended_ms is not None
    assert began_ms <= record.created_ms <= record.started_ms <= record.ended_ms <= int(time.time() * 1000)
    assert (told.webhook_id, told.signed_for) == (f"msg_{record.id}_1_succeeded", TENANT)


def test_a_worker_whose_clock_is_off_blames_itself_and_not_the_caller(stage: Stage) -> None:
    """S3 refuses requests signed an hour late; another worker must get the job."""
    wrong, right = stage.lab.nodes
    right.kill()
    wrong.restart(**clock_off(-HOUR_S))
    wait_until(
        lambda: [seen for seen in stage.lab.worker_registry.workers() if seen.node == wrong.name and seen.fault],
        LASTS_S,
    )
    job = stage.callers.send(BOX)
    right.start()

    record = stage.ended(job)

    wrong.restart()
    stage.lab.await_nodes()
    assert [made.worker for made in stage.lab.ledger.attempts(job)] == [right.name]
    assert record.status == "succeeded"


def test_every_key_is_one_that_the_ledger_describes(stage: Stage) -> None:
    """After all of the above, and a batch, most of them exist."""
    fields = stage.callers.spec(BOX)
    batch = {name: value for name, value in fields.items() if name not in ("image", "webhook")}
    sent = stage.lab.ask("POST", "/v1/batches", json={**batch, "images": [fields["image"]] * 2})
    assert [stage.ended(job).status for job in sent.json()["job_ids"]] == ["succeeded"] * 2
    described = [
        (re.compile(re.sub(r"\\\{.*?\\\}", ".+", re.escape(f"mf:{name}"))), kind)
        for names, kinds in DESCRIBED_KEYS.findall(ledger_described or "")
        for name, kind in zip(names.split(", "), cycle(kinds.split(", ")), strict=False)
    ]
    keys = [(key, stage.lab.redis.type(key)) for key in stage.lab.redis.scan_iter("mf:*", count=1000)]

    unknown = [
        found for found in keys if not any(name.fullmatch(found[0]) and kind == found[1] for name, kind in described)
    ]

    assert len(keys) > 20
    assert unknown == []
