"""Clicks on one image go to the node that has it in memory, and to any other when that one is busy, deaf or dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.faults.caller import Callers
from tests.faults.laboratory import STAND_IN, Laboratory, Program
from tests.faults.promises import HUNG
from tests.waiting import wait_until

BOX = f"box on {STAND_IN}"
CLICKS = 20
LASTS_S = 60


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with Laboratory(tmp_path_factory.mktemp("laboratory"), nodes=0, stand_ins=2) as lab:
        yield lab


def done_by(lab: Laboratory, callers: Callers) -> str:
    """Send a click, and return the node that did it."""
    job = callers.send(BOX)
    wait_until(lambda: lab.ledger.status(job) == "succeeded", LASTS_S)
    [attempt] = lab.ledger.attempts(job)
    return attempt.worker


def other_than(lab: Laboratory, node: Program) -> Program:
    [other] = [one for one in lab.nodes if one is not node]
    return other


def node_of(lab: Laboratory, name: str) -> Program:
    return lab.programs[name]


def test_clicks_on_an_image_go_to_the_node_that_has_it(lab: Laboratory) -> None:
    # On a busy machine a node may need longer than it is waited for by default, or than until the courier rings.
    lab.programs["api"].restart(MASKFLEET_IMAGE_NODE_WAIT_MS="900")
    for courier in lab.couriers:
        courier.restart(MASKFLEET_TICK_S="2")
    wait_until(lab.api_is_ready, LASTS_S)
    callers = Callers(lab, seed=1)
    first = done_by(lab, callers)

    nodes: Counter[str] = Counter()
    for _ in range(CLICKS):
        # Within the wait a node is called once.
        wait_until(lambda: not list(lab.redis.scan_iter("mf:called:*")), LASTS_S)
        nodes[done_by(lab, callers)] += 1

    # One that found its node late, on a busy machine, takes the others with it to the other node.
    [(_, most), *_] = nodes.most_common()
    assert most + (nodes[first] == CLICKS) >= CLICKS * 0.8


def test_while_that_node_is_busy_the_other_one_does_them(lab: Laboratory) -> None:
    callers = Callers(lab, seed=2)
    done_by(lab, callers)
    hung = callers.send(f"{HUNG} on {STAND_IN}")  # of the same image; it is ended after a second
    wait_until(lambda: lab.ledger.status(hung) == "processing", LASTS_S)
    record = lab.ledger.read(hung)
    assert record is not None

    assert done_by(lab, callers) == other_than(lab, node_of(lab, record.worker or "")).name


def test_a_node_that_does_not_come_delays_a_job_by_a_moment_and_is_not_asked_again(lab: Laboratory) -> None:
    callers = Callers(lab, seed=3)
    deaf = node_of(lab, done_by(lab, callers))
    other = other_than(lab, deaf)

    with deaf.frozen():
        nodes = [done_by(lab, callers) for _ in range(3)]

    assert nodes == [other.name] * 3


def test_a_node_that_died_takes_no_job_with_it(lab: Laboratory) -> None:
    callers = Callers(lab, seed=4)
    dead = node_of(lab, done_by(lab, callers))

    dead.kill()
    nodes = [done_by(lab, callers) for _ in range(3)]
    dead.start()

    assert nodes == [other_than(lab, dead).name] * 3
    lab.await_nodes()
