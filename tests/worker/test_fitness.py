"""When a node withdraws, and when it comes back; what its self-test sees."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from maskfleet.jobs.errors import (
    InvalidImage,
    JobError,
    ModelWrong,
    NodeFault,
    SourceUnreachable,
    StoreMisconfigured,
    StoreUnavailable,
)
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.settings import SharedSettings, WorkerSettings
from maskfleet.jobs.storage import Store
from maskfleet.worker.egress import egress_session
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.node.fitness import Fitness
from maskfleet.worker.node.health import why_not_ready
from maskfleet.worker.node.self_test import self_test
from tests.waiting import wait_until

FAULT = StoreMisconfigured("its credentials are not accepted.")
NODE = "sam-cpu@host"


class Machine:
    """A node whose self-test gives what the test says."""

    def __init__(self) -> None:
        self.wrong: JobError | None = None
        self.tests = 0

    def test(self) -> None:
        self.tests += 1
        if self.wrong is not None:
            raise self.wrong


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make(machine: Machine, worker_registry: WorkerRegistry) -> Iterator[Callable[..., Fitness]]:
    made = []

    def fitness(*, limit: int = 3, probe_s: float = 0.01) -> Fitness:
        made.append(Fitness(machine.test, worker_registry, NODE, limit=limit, probe_s=probe_s))
        return made[-1]

    yield fitness
    for one in made:
        one.close()


def is_fit(fitness: Fitness) -> bool:
    return fitness.wait(lambda: True)


def test_a_node_withdraws_after_so_many_faults_in_a_row_and_not_before(
    make: Callable[..., Fitness], machine: Machine
) -> None:
    fitness, machine.wrong = make(probe_s=60), FAULT

    for error in (FAULT, FAULT, None, FAULT, FAULT):
        fitness.note(error)
    assert is_fit(fitness)
    fitness.note(FAULT)

    assert not is_fit(fitness)
    assert "store_misconfigured" in fitness.fault


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable(),
        InvalidImage("not_an_image", "No image."),
        NodeFault("record_unreadable", "Newer.", counts=False),
        SourceUnreachable("down.example"),
    ],
)
def test_outages_and_what_callers_can_cause_never_have_a_node_withdraw(
    make: Callable[..., Fitness], error: JobError
) -> None:
    fitness = make()

    for _ in range(10):
        fitness.note(error)

    assert is_fit(fitness)


def test_a_node_returns_when_its_test_passes_and_not_for_an_outage_that_hides_it(
    make: Callable[..., Fitness], machine: Machine
) -> None:
    fitness, machine.wrong = make(limit=1), FAULT
    fitness.note(FAULT)
    wait_until(lambda: machine.tests >= 2)
    machine.wrong = StoreUnavailable()
    seen = machine.tests
    wait_until(lambda: machine.tests > seen + 1)
    assert not is_fit(fitness)

    machine.wrong = None

    wait_until(lambda: is_fit(fitness))
    assert fitness.fault == ""


def test_a_node_that_starts_wrong_takes_no_first_job(make: Callable[..., Fitness], machine: Machine) -> None:
    fitness, machine.wrong = make(probe_s=60), FAULT

    fitness.begin()

    assert not is_fit(fitness)


def test_an_outage_at_the_start_is_no_fault_of_the_node(make: Callable[..., Fitness], machine: Machine) -> None:
    fitness, machine.wrong = make(), StoreUnavailable()

    fitness.begin()

    assert is_fit(fitness)


def test_a_fault_that_ends_the_process_each_time_still_counts(make: Callable[..., Fitness]) -> None:
    for _ in range(2):
        life = make(probe_s=60)
        life.begin()
        life.note(FAULT)
        assert is_fit(life)

    life = make(probe_s=60)
    life.begin()
    life.note(FAULT)

    assert not is_fit(life)


def test_after_a_return_one_more_fault_is_too_many_until_a_job_has_succeeded(
    make: Callable[..., Fitness], machine: Machine
) -> None:
    fitness = make()
    for _ in range(3):
        fitness.note(FAULT)
    wait_until(lambda: is_fit(fitness))
    machine.wrong = FAULT

    fitness.note(FAULT)
    assert not is_fit(fitness)

    machine.wrong = None
    wait_until(lambda: is_fit(fitness))
    for error in (None, FAULT, FAULT):
        fitness.note(error)
    assert is_fit(fitness)


def test_without_a_limit_no_node_withdraws(make: Callable[..., Fitness], machine: Machine) -> None:
    fitness = make(limit=0)

    for _ in range(10):
        fitness.note(FAULT)

    assert is_fit(fitness)


def test_a_node_that_has_withdrawn_is_not_ready_and_counts_for_nothing(worker_registry: WorkerRegistry) -> None:
    worker_registry.announce(WorkerSeen(NODE, "sam-demo", "cpu", 1, 0, fault=str(FAULT)))

    assert worker_registry.serving("sam-demo") == 0
    assert worker_registry.withdrawn() == {"sam-demo": 1}
    reason = why_not_ready(worker_registry.workers(), NODE, 60)
    assert reason is not None
    assert "store_misconfigured" in reason

    worker_registry.announce(WorkerSeen(NODE, "sam-demo", "cpu", 1, 0))

    assert (worker_registry.serving("sam-demo"), worker_registry.withdrawn()) == (1, {"sam-demo": 0})


def test_a_well_node_passes_its_test_and_leaves_nothing_behind(
    store: Store, worker_registry: WorkerRegistry, worker_settings: WorkerSettings
) -> None:
    self_test(store, worker_registry, worker_settings, egress_session(allow_private=True))

    assert list(store.listed("results/self-test/")) == []


@pytest.mark.parametrize(
    "wrong", [{"s3_secret_key": "wrong"}, {"s3_access_key": "nobody"}, {"bucket": "elsewhere-entirely"}], ids=str
)
def test_a_node_that_the_store_refuses_fails_its_test(
    store_fields: dict[str, str],
    worker_registry: WorkerRegistry,
    worker_settings: WorkerSettings,
    wrong: dict[str, str],
) -> None:
    with pytest.raises(StoreMisconfigured):
        self_test(
            Store(SharedSettings(**{**store_fields, **wrong})),
            worker_registry,
            worker_settings,
            egress_session(allow_private=True),
        )


def test_a_node_whose_network_is_blocked_fails_its_test_where_a_probe_is_set(
    store: Store, worker_registry: WorkerRegistry, worker_settings: WorkerSettings, store_fields: dict[str, str]
) -> None:
    def nothing(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    probing = worker_settings.model_copy(update={"egress_probe_url": "https://probe.example/"})
    blocked = egress_session(allow_private=False, resolve=nothing)

    self_test(store, worker_registry, worker_settings, blocked)
    with pytest.raises(NodeFault, match="egress_blocked"):
        self_test(store, worker_registry, probing, blocked)
    reachable = worker_settings.model_copy(
        update={"egress_probe_url": store_fields["s3_endpoint"]}
    )  # it responds 403, which is enough
    self_test(store, worker_registry, reachable, egress_session(allow_private=True))


def test_a_probe_that_workers_may_not_reach_stops_the_start() -> None:
    with pytest.raises(ValueError, match="egress_probe_url"):
        WorkerSettings(egress_probe_url="https://10.0.0.1/")


def test_hosts_that_are_not_reached_lead_to_a_test_and_to_a_withdrawal_only_if_it_fails(
    make: Callable[..., Fitness], machine: Machine
) -> None:
    fitness = make(probe_s=60)

    for host in ("a.example", "a.example", "b.example", "a.example"):
        fitness.note(SourceUnreachable(host))
    assert machine.tests == 0
    fitness.note(None)
    fitness.note(SourceUnreachable("c.example"))
    assert machine.tests == 1
    assert is_fit(fitness)

    machine.wrong = NodeFault("egress_blocked", "Nothing is reached.")
    for host in ("a.example", "b.example", "c.example"):
        fitness.note(SourceUnreachable(host))

    assert not is_fit(fitness)
    assert "egress_blocked" in fitness.fault


def test_a_decoder_that_decodes_nothing_is_no_fault_of_an_image(coins: bytes) -> None:
    broken = Sandbox((sys.executable, "-c", "raise SystemExit(3)"))

    with pytest.raises(NodeFault, match="decoder_broken"):
        broken.decode(coins, 10**6)
    broken.close()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_model_that_fails_its_test_has_the_node_withdraw_and_is_loaded_anew_if_masks_were_recorded(
    machine: Machine, worker_registry: WorkerRegistry, recorded: bool
) -> None:
    model, anew = Machine(), threading.Event()
    fitness = Fitness(
        machine.test, worker_registry, NODE, limit=3, probe_s=0.01, test_model=model.test, load_anew=anew.set
    )
    fitness.begin()
    assert is_fit(fitness)
    model.wrong = ModelWrong("Its masks are others.", recorded=recorded)

    fitness.check_model()

    assert not is_fit(fitness)
    assert "model_wrong" in fitness.fault
    assert worker_registry.faults(NODE) == 4
    seen = model.tests
    wait_until(lambda: model.tests > seen + 1)
    assert anew.is_set() is recorded
    model.wrong = None
    wait_until(lambda: is_fit(fitness))
    fitness.close()


def test_a_model_is_not_tested_for_hosts_that_are_not_reached(
    machine: Machine, worker_registry: WorkerRegistry
) -> None:
    model = Machine()
    fitness = Fitness(machine.test, worker_registry, NODE, limit=3, probe_s=60, test_model=model.test)

    for host in ("a.example", "b.example", "c.example"):
        fitness.note(SourceUnreachable(host))

    assert (machine.tests, model.tests) == (1, 0)
