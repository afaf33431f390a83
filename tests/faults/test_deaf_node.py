"""A node that no longer receives messages from Redis: it notices, exits, and another takes its place."""

from __future__ import annotations

from pathlib import Path

from tests.faults.caller import Callers
from tests.faults.laboratory import STAND_IN, Laboratory
from tests.waiting import wait_until

#: The command with which Celery acknowledges a message.
ACKNOWLEDGES = b"HDEL"


def test_a_node_that_could_not_acknowledge_its_message_comes_back(tmp_path: Path) -> None:
    """Only acknowledgements are broken off: Celery then keeps its message forever and takes no other."""
    with Laboratory(tmp_path, nodes=0, stand_ins=1) as lab:
        callers = Callers(lab, seed=1)
        [node] = lab.nodes
        way = lab.redis_ways[node.name]
        job = callers.send(f"box on {STAND_IN}")
        wait_until(lambda: lab.ledger.status(job) == "succeeded", 60)  # so that the scripts, which name it, are loaded

        def break_off() -> None:
            way.watch(ACKNOWLEDGES, break_off)

        break_off()
        wait_until(lambda: "Couldn't ack" in node.log.read_text(), 60)
        wait_until(lambda: "node_hears_nothing" in node.log.read_text(), 60)
        way.unwatch()
        job = callers.send(f"box on {STAND_IN}")

        wait_until(lambda: lab.ledger.status(job) == "succeeded", 120, every_s=0.1)
        assert node.ended_by_itself == 1
