"""A node whose connection looks well and delivers nothing: it notices, ends, and another takes its place."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.faults.caller import Callers
from tests.faults.laboratory import STAND_IN, Laboratory
from tests.faults.proxy import Fault, Mode
from tests.waiting import wait_until


def test_a_node_that_could_not_acknowledge_its_message_comes_back(tmp_path: Path) -> None:
    with Laboratory(tmp_path, nodes=0, stand_ins=1) as lab:
        callers = Callers(lab, seed=1)
        held = callers.hold(STAND_IN)
        assert held is not None
        [node] = lab.nodes

        # The child ends, and Celery cannot tell Redis that it is done with the message.
        lab.redis_ways[node.name].set(Fault(Mode.RESET))
        held.kill()
        with suppress(AssertionError):  # whether Celery comes to the acknowledgement first is a race
            wait_until(lambda: "Couldn't ack" in node.log.read_text(), 10)
        lab.redis_ways[node.name].heal()
        job = callers.send(f"box on {STAND_IN}")

        wait_until(lambda: lab.ledger.status(job) == "succeeded", 120, every_s=0.1)
        if "node_hears_nothing" in node.log.read_text():
            assert node.ended_by_itself == 1
