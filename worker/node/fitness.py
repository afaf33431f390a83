"""Whether a node may take jobs: one that is wrong itself must not fail one job after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from maskfleet.jobs.errors import JobError, ModelWrong, NodeFault, QueueUnavailable, ServiceError, SourceUnreachable
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.logs import get_logger

logger = get_logger()

#: A node that has withdrawn tests itself at least this often.
LONGEST_PROBE_S = 300.0
#: How often a node that has withdrawn checks whether it is to shut down.
POLL_S = 0.5
#: A node that could not reach so many different hosts of images since its last test tests itself.
UNREACHED_HOSTS = 3


class Fitness:
    """Counts a node's own faults in a row; after too many it withdraws, and returns when its self-test passes.

    Faults are counted in Redis as well, so that a process that ends with each of them is still the same faulty node.
    After a return the next fault is one too many again, unless a job has succeeded meanwhile.

    A model that fails its test is one fault too many, and is loaded anew if it fails once more, where golden masks were
    recorded: without them, a new process would take for right whatever it computes.
    """

    def __init__(
        self,
        test: Callable[[], None],
        worker_registry: WorkerRegistry,
        node: str,
        *,
        limit: int,
        probe_s: float,
        test_model: Callable[[], None] = lambda: None,
        load_anew: Callable[[], None] = lambda: None,
    ) -> None:
        """test: raises NodeFault if this node is unfit.  limit: so many faults are too many; 0: any number may be.

        test_model: raises ModelWrong; it is called only while no job runs.  load_anew: ends this process, so that
        another one loads the model.
        """
        self._test = test
        self._test_model = test_model
        self._load_anew = load_anew
        self._worker_registry = worker_registry
        self._node = node
        self._limit = limit
        self._probe_s = probe_s
        self._faults = 0
        self._unreached: set[str] = set()
        self._fault: NodeFault | None = None
        self._fit = threading.Event()
        self._fit.set()
        self._over = threading.Event()

    @property
    def fault(self) -> str:
        """Why the node has withdrawn; empty while it takes jobs."""
        fault = self._fault
        return "" if fault is None or self._fit.is_set() else str(fault)

    def begin(self) -> None:
        """Test the node before its first job."""
        with suppress(QueueUnavailable):
            self._faults = self._worker_registry.faults(self._node)
        self._withdraw_if_unfit(self._test_all)

    def check_model(self) -> None:
        """Test the model, between two jobs."""
        if self._fit.is_set():
            self._withdraw_if_unfit(self._test_model)

    def note(self, error: JobError | None) -> None:
        """Note how an attempt went: None if it got as far as its job's own outcome."""
        if not self._limit or (error is not None and not isinstance(error, NodeFault)):
            return
        if isinstance(error, SourceUnreachable):
            self._note_unreached(error.host)
        elif error is None:
            self._count(0)
        elif error.counts:
            self._count(self._faults + 1)
            if self._faults >= self._limit:
                self._withdraw(error)

    def wait(self, is_over: Callable[[], bool]) -> bool:
        """Wait until the node is fit to take a job; return False if ``is_over`` first."""
        while not self._fit.wait(POLL_S):
            if is_over():
                return False
        return True

    def close(self) -> None:
        """End the tests."""
        self._over.set()

    def _note_unreached(self, host: str) -> None:
        """Test the node when it reaches nobody; callers can provoke that, so a test is all it leads to.

        Jobs in between that need no other host say nothing of the network, so they do not start the count over.
        """
        self._unreached.add(host)
        if len(self._unreached) >= UNREACHED_HOSTS:
            logger.warning("hosts_not_reached", hosts=len(self._unreached))
            self._unreached.clear()
            self._withdraw_if_unfit(self._test)

    def _test_all(self) -> None:
        self._test_model()  # first: an outage breaks the other one off
        self._test()

    def _withdraw_if_unfit(self, test: Callable[[], None]) -> None:
        try:
            test()
        except NodeFault as fault:
            self._withdraw(fault)
        except ServiceError as error:  # an outage: jobs meet it, too, and are not charged
            logger.warning("self_test_broke_off", code=error.code)

    def _count(self, faults: int) -> None:
        if faults != self._faults:
            self._faults = faults
            with suppress(QueueUnavailable):
                self._worker_registry.set_faults(self._node, faults)

    def _withdraw(self, fault: NodeFault) -> None:
        if isinstance(fault, ModelWrong):
            self._count(max(self._faults, self._limit) + 1)  # so that each new process waits longer than the last one
        logger.error("node_withdrawn", code=fault.code, detail=fault.detail, faults=self._faults)
        self._fault = fault
        self._fit.clear()
        threading.Thread(target=self._probe, name="probe", daemon=True).start()

    def _probe(self) -> None:
        wait_s = self._probe_s * 2.0 ** min(max(0, self._faults - self._limit), 16)
        while not self._over.wait(min(wait_s, LONGEST_PROBE_S)):
            wait_s *= 2
            try:
                self._test_all()
            except ServiceError as error:
                logger.warning(
                    "node_still_unfit", code=error.code, detail=error.detail, next_in_s=min(wait_s, LONGEST_PROBE_S)
                )
                if isinstance(error, NodeFault):
                    self._fault = error
                if isinstance(error, ModelWrong) and error.recorded:
                    logger.error("model_loaded_anew")
                    self._load_anew()
                continue
            except Exception:  # nothing above this thread would catch it, and the node would never return
                logger.exception("self_test_broke")
                continue
            logger.warning("node_returned")
            self._fit.set()
            return
