"""The process that holds the model: its resources, and how it proves that it takes work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from maskfleet.jobs.errors import ModelWrong, QueueUnavailable
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.outages import OutageLog
from maskfleet.jobs.ledger.workers import WORKER_TTL_S, WorkerRegistry, WorkerSeen
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.messages import CANARY, Publisher
from maskfleet.jobs.queue import canary_queue
from maskfleet.worker.lease import kill_this_process
from maskfleet.worker.node.figures import StartStage, figures
from maskfleet.worker.node.fitness import Fitness
from maskfleet.worker.node.loading import program_version

if TYPE_CHECKING:
    from maskfleet.worker.attempt import Workbench

logger = get_logger()

#: A parent that does not exit within this time after SIGTERM is killed.
END_GRACE_S = 5.0


class WorkerChild:
    """The workbench, and a thread that announces the worker with the time of the last message it received.

    A connection to Redis may look healthy and deliver nothing.  So an idle node sends itself a canary through
    the broker; as long as messages arrive, the node is ready.  A node that receives no canary for
    ``ready_within_s`` exits, so that its supervisor restarts it: Celery does not notice when an acknowledgement
    failed while Redis was down, and then takes no more messages.
    """

    def __init__(
        self,
        bench: Workbench,
        worker_registry: WorkerRegistry,
        publisher: Publisher,
        epoch: Epoch,
        end_process: Callable[[], None] = kill_this_process,
    ) -> None:
        self._bench = bench
        self._end_process = end_process
        self._worker_registry = worker_registry
        self._publisher = publisher
        from maskfleet.worker.node.self_test import self_test  # not in the node's parent process, which needs no numpy

        settings = bench.settings
        test = partial(self_test, bench.store, worker_registry, settings, bench.egress)
        self._fitness = Fitness(
            test,
            worker_registry,
            settings.node,
            limit=settings.node_faults,
            probe_s=settings.probe_s,
            test_model=_counted(bench.test_model),
            load_anew=end_process,
        )
        self._fitness.begin()
        self._model_tested_at = time.monotonic()
        self._testing_since: float | None = None
        self._epoch = epoch
        self._jobs = 0
        self._busy = False
        self._consumed_at = time.monotonic()
        self._canary_sent_at = time.monotonic()
        self._unheard_since: float | None = None
        self._node_pid = os.getppid()
        self._over = threading.Event()
        self._outage = OutageLog("announce")

    def begin(self) -> None:
        """Announce the worker from now on."""
        threading.Thread(target=self._announce_until_over, name="announce", daemon=True).start()

    def hear(self, argument: str, queue: str = "") -> None:
        """Run the next job at a bell, or note a canary; then test the model, if that is due.

        queue: where it was heard.
        """
        self._consumed_at = time.monotonic()
        self._unheard_since = None
        if not self._fitness.fault and figures().reached(StartStage.CANARY):
            logger.info("worker_started", **figures().start_fields)
        from maskfleet.worker.attempt import attempt_next

        self._busy = True
        try:
            # While it waits, Celery hands this node nothing more: see celery_app's prefetching.
            if argument != CANARY and self._fitness.wait(self._is_draining):
                self._jobs += attempt_next(self._bench, self._fitness.note, rung_in=queue)
            self._test_model_if_due()
            # Here rather than at the next bell, so that none is taken only to lie here.
            self._fitness.wait(self._is_draining)
        finally:
            self._busy = False
            self._consumed_at = time.monotonic()

    def leave(self) -> None:
        """Withdraw from the worker registry, and end what this process started."""
        self._over.set()
        self._fitness.close()
        self._bench.sandbox.close()
        try:
            self._worker_registry.withdraw(self._bench.settings.node)
        except QueueUnavailable:
            logger.warning("worker_not_withdrawn")  # its entry expires

    def _test_model_if_due(self) -> None:
        every_s = self._bench.settings.model_test_s
        if every_s and time.monotonic() - self._model_tested_at >= every_s:
            self._testing_since = time.monotonic()
            self._fitness.check_model()
            self._testing_since = None
            self._model_tested_at = time.monotonic()

    def _is_draining(self) -> bool:
        try:
            return self._bench.ledger.is_draining(self._bench.settings.node)
        except QueueUnavailable:
            return False

    def _announce_until_over(self) -> None:
        while not self._over.is_set():
            try:
                self._epoch.note()
                self._announce()
                self._outage.over()
            except QueueUnavailable as error:
                self._outage.note(error)
                self._unheard_since = None  # nothing could have been delivered
            except Exception as error:  # noqa: BLE001  a node that takes jobs unannounced would look dead for ever
                self._outage.broke(error)
            self._over.wait(min(WORKER_TTL_S / 6, self._bench.settings.canary_s))

    def _announce(self) -> None:
        settings = self._bench.settings
        now = time.monotonic()
        if self._testing_since is not None and now - self._testing_since > settings.load_timeout_s:
            logger.error("model_test_hangs", since_s=int(now - self._testing_since))
            self._end_process()
        # While it runs a job, the lease shows whether it is healthy.
        idle_s = 0 if self._busy else int(now - self._consumed_at)
        self._worker_registry.announce(
            WorkerSeen(
                settings.node,
                settings.serves,
                settings.device,
                os.getpid(),
                self._jobs,
                idle_s,
                fault=self._fitness.fault,
                version=program_version(),
                start_s=figures().start_s,
                outputs=settings.serve_outputs,
            )
        )
        if not self._busy and now - max(self._consumed_at, self._canary_sent_at) > settings.canary_s:
            self._canary_sent_at = now
            self._publisher.publish(CANARY, canary_queue(settings.node))
            self._unheard_since = self._unheard_since or now
        if not self._busy and self._unheard_since and now - self._unheard_since > settings.ready_within_s:
            logger.error("node_hears_nothing", idle_s=idle_s)
            self._end_node()

    def _end_node(self) -> None:
        """End the node's parent process, which its supervisor then restarts, and this process."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if os.getppid() != self._node_pid:  # it has ended already
                break
            os.kill(self._node_pid, number)
            time.sleep(END_GRACE_S)
        os._exit(1)


def _counted(test_model: Callable[[], None] | None) -> Callable[[], None]:
    """Return the test of the model, with its results counted; one that does nothing for a stand-in without a model."""
    if test_model is None:
        return lambda: None

    def test() -> None:
        try:
            test_model()
        except ModelWrong:
            figures().model_tested(ok=False)
            raise
        figures().model_tested(ok=True)

    return test
