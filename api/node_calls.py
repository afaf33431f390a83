"""Calls: a bell for the one node that has a new job's image in memory, and one for all nodes if it does not come.

A call is a hint.  Whoever hears a bell claims the job that is next, so a call takes a job from nobody, and one that is
lost or comes to nothing costs no more than the wait.  If this process ends meanwhile, the courier rings within a
second, as it does for any job whose bell was never rung.
"""

from __future__ import annotations

import threading

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.messages import Bells
from maskfleet.jobs.status import Status

logger = get_logger()


class NodeCalls:
    """Calls nodes.  Under gevent, what waits costs a greenlet."""

    def __init__(self, ledger: Ledger, bells: Bells, wait_ms: int) -> None:
        """wait_ms: for how long a node that was called has the job to itself; 0: none is called."""
        self._ledger = ledger
        self._bells = bells
        self.wait_ms = wait_ms

    def call(self, node: str, job_id: str, queue: str, *, tenant: str, image: str) -> None:
        """Call a node to a job, and all nodes if the job still waits a moment later.

        Raises QueueUnavailable if the node cannot be called; then nobody is.
        """
        self._bells.call(node)
        later = threading.Timer(
            self.wait_ms / 1000, self._call_all, [job_id, queue], {"tenant": tenant, "image": image}
        )
        later.daemon = True
        later.start()

    def _call_all(self, job_id: str, queue: str, *, tenant: str, image: str) -> None:
        try:
            if self._ledger.status(job_id) is not Status.QUEUED:
                return
            self._bells.ring(queue)
            # It may be dead, or busy with something else: the next job of this image need not wait for it, too.
            self._ledger.forget_image_node(tenant, image)
        except QueueUnavailable:
            logger.warning("bell_left_to_courier", queue=queue, job_id=job_id)
