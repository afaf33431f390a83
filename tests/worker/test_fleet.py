"""The fleet: nodes that see their own device and no other one.  NVML is faked; the nodes are real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

#: Stands in for NVIDIA's own module on a machine with GPUs.
NVML = """
import os

class NVMLError(Exception):
    pass

def nvmlInit():
    if os.environ["STAND_IN_GPUS"] == "no driver":
        raise NVMLError("Driver Not Loaded")

def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return int(os.environ["STAND_IN_GPUS"])
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetName(handle): return f"Card {handle}"
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}{handle}{handle}{handle}-beef"

class Memory:
    free = int(float(os.environ.get("STAND_IN_FREE_GB", "80")) * 1e9)

def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetHandleByUUID(uuid): raise NVMLError("Not Found")
"""

#: A node that reports what it sees at start-up, and how it ends; if told to be busy, it takes its time.
NODE = """
import json, os, pathlib, signal, sys, time

seen = ("OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
seen += ("MASKFLEET_HEALTH_PORT", "MASKFLEET_DEVICE", "MASKFLEET_NODE", "MASKFLEET_SLOTS_PER_DEVICE")
seen += ("MASKFLEET_TORCH_THREADS", "OMP_NUM_THREADS")
folder = pathlib.Path(sys.argv[1])
report = {"pid": os.getpid(), **{name: os.environ.get(name) for name in seen}}

def end(*_):
    if sys.argv[2] != "stubborn":
        (folder / f"{os.getpid()}.ended").touch()
        sys.exit(0)

signal.signal(signal.SIGTERM, end)
(folder / f"{os.getpid()}.part").write_text(json.dumps(report))
(folder / f"{os.getpid()}.part").rename(folder / f"{os.getpid()}.json")
while True:
    time.sleep(60)
"""

FLEET = """
import os, sys
from maskfleet.jobs.logs import configure_logs
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.node.device import NoSuchDevice
from maskfleet.worker.node.fleet import TooManyNodes, run_fleet
from maskfleet.worker.node.memory import TooLittleMemory
configure_logs("INFO", program="fleet")
try:
    run_fleet(sys.argv[1], os.environ, WorkerSettings(), [sys.executable, *sys.argv[2:]])
except (NoSuchDevice, TooManyNodes, TooLittleMemory) as error:
    sys.exit(f"refused: {error}")
assert "torch" not in sys.modules
"""


@dataclass
class Fleet:
    """A fleet under test, and the folder its nodes report to."""

    process: subprocess.Popen[bytes]
    folder: Path
    errors: Path

    def reports(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in self.folder.glob("*.json")]

    def await_nodes(self, count: int) -> list[dict[str, object]]:
        wait_until(lambda: len(self.reports()) >= count or self.process.poll() is not None)
        found = sorted(self.reports(), key=lambda report: str(report["MASKFLEET_NODE"]))
        assert len(found) == count, self.errors.read_text()
        return found

    def log(self) -> list[dict[str, object]]:
        """Return what the fleet logged, once it has ended."""
        self.process.wait(10)
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    def end(self) -> None:
        """End whatever of it still runs."""
        self.process.kill()
        self.process.wait()
        for report in self.reports():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(str(report["pid"]))).kill()


class FleetStarter:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "stand-in").mkdir()
        (folder / "stand-in" / "pynvml.py").write_text(NVML)
        (folder / "node.py").write_text(NODE)
        (folder / "reports").mkdir()
        self.started: list[Fleet] = []

    def __call__(self, devices: str, *, gpus: str = "4", nodes: str = "polite", **environment: str) -> Fleet:
        errors = self._folder / "errors"
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", FLEET, devices, self._folder / "node.py", self._folder / "reports", nodes],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "OMP_"))},
                    "PYTHONPATH": str(self._folder / "stand-in"),
                    "STAND_IN_GPUS": gpus,
                    **environment,
                },
                stderr=stderr,
            )
        self.started.append(Fleet(process, self._folder / "reports", errors))
        return self.started[-1]


@pytest.fixture
def start_fleet(tmp_path: Path) -> Iterator[FleetStarter]:
    starter = FleetStarter(tmp_path)
    yield starter
    for fleet in starter.started:
        fleet.end()


def test_all_starts_one_node_for_each_gpu_that_sees_no_other(start_fleet: FleetStarter) -> None:
    nodes = start_fleet("all", gpus="3").await_nodes(3)

    assert [node["CUDA_VISIBLE_DEVICES"] for node in nodes] == ["0", "1", "2"]
    assert {node["CUDA_DEVICE_ORDER"] for node in nodes} == {"PCI_BUS_ID"}
    assert {node["MASKFLEET_DEVICE"] for node in nodes} == {"cuda"}
    assert [node["MASKFLEET_NODE"] for node in nodes] == [f"sam-gpu{n}@{socket.gethostname()}" for n in range(3)]


def test_numbers_start_a_node_on_those_gpus_alone(start_fleet: FleetStarter) -> None:
    nodes = start_fleet("0,2", MASKFLEET_HEALTH_PORT="8080").await_nodes(2)

    assert [node["CUDA_VISIBLE_DEVICES"] for node in nodes] == ["0", "2"]
    assert [node["MASKFLEET_HEALTH_PORT"] for node in nodes] == ["8080", "8081"]


def test_the_cpu_node_sees_no_gpu_and_asks_no_driver(start_fleet: FleetStarter) -> None:
    (node,) = start_fleet("cpu", gpus="no driver").await_nodes(1)

    assert node["CUDA_VISIBLE_DEVICES"] == ""
    assert node["OMP_WAIT_POLICY"] == "PASSIVE"
    assert node["MASKFLEET_DEVICE"] == "cpu"
    assert node["MASKFLEET_NODE"] == f"sam-cpu@{socket.gethostname()}"


def test_numbers_count_the_entries_of_a_cuda_visible_devices_that_is_set(start_fleet: FleetStarter) -> None:
    (node,) = start_fleet("1", CUDA_VISIBLE_DEVICES="1,3").await_nodes(1)

    assert node["CUDA_VISIBLE_DEVICES"] == "3"
    assert node["MASKFLEET_NODE"] == f"sam-gpu3@{socket.gethostname()}"


def test_all_takes_gpus_and_slices_that_are_named_by_their_uuid(start_fleet: FleetStarter) -> None:
    nodes = start_fleet("all", CUDA_VISIBLE_DEVICES="GPU-1111,MIG-aaaabbbb-cc").await_nodes(2)

    assert [node["CUDA_VISIBLE_DEVICES"] for node in nodes] == ["GPU-1111", "MIG-aaaabbbb-cc"]
    assert [str(node["MASKFLEET_NODE"]).partition("@")[0] for node in nodes] == ["sam-gpu-1111", "sam-mig-aaaabbbb"]


@pytest.mark.parametrize(
    ("devices", "gpus", "visible", "answer"),
    [
        ("7", "2", None, "There is no device '7'. Available: 0 (Card 0), 1 (Card 1)"),
        ("0,x", "2", None, "There is no device 'x'."),
        ("0,0", "2", None, "names a device twice"),
        ("all", "0", None, "Use `--devices cpu`"),
        ("all", "no driver", None, "Use `--devices cpu`"),
        ("all", "2", "", "Use `--devices cpu`"),
        ("all", "2", "5", "this machine has 2 GPUs"),
        ("all", "2", "GPU-9", "not one of this machine's GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_to_do(
    start_fleet: FleetStarter, devices: str, gpus: str, visible: str | None, answer: str
) -> None:
    fleet = start_fleet(devices, gpus=gpus, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))

    assert fleet.process.wait(10) == 1
    assert answer in fleet.errors.read_text()


def test_sigterm_lets_every_node_end_and_then_the_fleet(start_fleet: FleetStarter) -> None:
    fleet = start_fleet("all", gpus="2")
    nodes = fleet.await_nodes(2)

    fleet.process.terminate()

    events = [line["event"] for line in fleet.log()]
    assert fleet.process.returncode == 0
    assert events.count("node_started") == 2
    assert events.count("node_ended") == 2
    assert all((fleet.folder / f"{node['pid']}.ended").exists() for node in nodes)


def test_a_second_signal_kills_nodes_that_do_not_end(start_fleet: FleetStarter) -> None:
    fleet = start_fleet("all", gpus="2", nodes="stubborn")
    nodes = fleet.await_nodes(2)
    fleet.process.send_signal(signal.SIGINT)
    wait_until(lambda: "fleet_draining" in fleet.errors.read_text())
    assert all(psutil.pid_exists(int(str(node["pid"]))) for node in nodes)

    fleet.process.send_signal(signal.SIGINT)

    assert "fleet_killed" in [line["event"] for line in fleet.log()]
    assert not any(psutil.pid_exists(int(str(node["pid"]))) for node in nodes)


def test_a_node_that_dies_is_started_again_on_its_device(start_fleet: FleetStarter) -> None:
    fleet = start_fleet("1,2")
    first, other = fleet.await_nodes(2)

    os.kill(int(str(first["pid"])), signal.SIGKILL)

    again = wait_until(lambda: [node for node in fleet.reports() if node["pid"] not in (first["pid"], other["pid"])])
    assert [node["CUDA_VISIBLE_DEVICES"] for node in again] == ["1"]
    fleet.process.terminate()
    (ended,) = [line for line in fleet.log() if line["event"] == "child_ended"]
    assert ended["status"] == -signal.SIGKILL
    assert ended["child"] == first["MASKFLEET_NODE"]


def test_no_node_outlives_a_fleet_that_is_killed(start_fleet: FleetStarter) -> None:
    fleet = start_fleet("all", gpus="2", nodes="stubborn")
    nodes = fleet.await_nodes(2)

    fleet.process.kill()
    fleet.process.wait()

    wait_until(lambda: not any(psutil.pid_exists(int(str(node["pid"]))) for node in nodes))


# Slots: several nodes on one device.


def test_slots_are_nodes_of_their_own_on_one_device_with_their_own_name_and_health_port(
    start_fleet: FleetStarter, demo_model: str
) -> None:
    slots = {"MASKFLEET_SLOTS_PER_DEVICE": "2", "MASKFLEET_MODEL": demo_model, "MASKFLEET_HEALTH_PORT": "8080"}

    nodes = start_fleet("all", gpus="2", **slots).await_nodes(4)

    host = socket.gethostname()
    assert [node["MASKFLEET_NODE"] for node in nodes] == [
        f"sam-gpu{n}.{slot}@{host}" for n in (0, 1) for slot in (0, 1)
    ]
    assert [node["CUDA_VISIBLE_DEVICES"] for node in nodes] == ["0", "0", "1", "1"]
    assert [node["MASKFLEET_HEALTH_PORT"] for node in nodes] == ["8080", "8081", "8082", "8083"]
    assert {node["MASKFLEET_SLOTS_PER_DEVICE"] for node in nodes} == {"2"}
    assert len({node["pid"] for node in nodes}) == 4


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"OMP_NUM_THREADS": "8"}, ("4", "4")),  # as many as there may be in all
        ({"OMP_NUM_THREADS": "1"}, ("1", "1")),
        ({"OMP_NUM_THREADS": "8", "MASKFLEET_TORCH_THREADS": "3"}, ("3", "8")),
    ],
)
def test_slots_on_a_cpu_divide_its_threads_unless_they_are_set(
    start_fleet: FleetStarter, demo_model: str, settings: dict[str, str], threads: tuple[str, str]
) -> None:
    fleet = start_fleet("cpu", MASKFLEET_SLOTS_PER_DEVICE="2", MASKFLEET_MODEL=demo_model, **settings)

    nodes = fleet.await_nodes(2)

    assert [node["MASKFLEET_NODE"] for node in nodes] == [f"sam-cpu.{n}@{socket.gethostname()}" for n in (0, 1)]
    assert [(node["MASKFLEET_TORCH_THREADS"], node["OMP_NUM_THREADS"]) for node in nodes] == [threads] * 2


def test_one_slot_leaves_the_threads_alone(start_fleet: FleetStarter) -> None:
    (node,) = start_fleet("cpu", OMP_NUM_THREADS="8").await_nodes(1)

    assert (node["MASKFLEET_TORCH_THREADS"], node["OMP_NUM_THREADS"]) == (None, "8")


@pytest.mark.parametrize(
    ("slots", "free_gb", "answer"),
    [
        ("4", "5", "4 workers need about 17.5 GB of memory on the GPU gpu0 (Card 0), where 5.0 GB are available"),
        ("4", "9", "Use --slots-per-device 2"),
        ("33", "900", "33 workers on each of 2 devices are 66; one machine runs at most 64."),
    ],
)
def test_more_slots_than_fit_are_refused_before_any_node_is_started(
    start_fleet: FleetStarter, demo_model: str, slots: str, free_gb: str, answer: str
) -> None:
    settings = {"MASKFLEET_SLOTS_PER_DEVICE": slots, "STAND_IN_FREE_GB": free_gb, "MASKFLEET_MODEL": demo_model}
    fleet = start_fleet("all", gpus="2", **settings)

    assert fleet.process.wait(10) == 1
    assert answer in fleet.errors.read_text()
    assert fleet.reports() == []


def test_a_card_that_does_not_say_what_is_free_is_used_and_the_log_says_so(
    start_fleet: FleetStarter, demo_model: str
) -> None:
    slots = {
        "MASKFLEET_SLOTS_PER_DEVICE": "2",
        "MASKFLEET_MODEL": demo_model,
        "CUDA_VISIBLE_DEVICES": "MIG-aaaabbbb-cc",
    }
    fleet = start_fleet("all", **slots)

    fleet.await_nodes(2)

    assert "memory_not_checked" in fleet.errors.read_text()


def test_a_slot_that_dies_is_started_again_and_its_neighbour_is_left_alone(
    start_fleet: FleetStarter, demo_model: str
) -> None:
    fleet = start_fleet("0", MASKFLEET_SLOTS_PER_DEVICE="2", MASKFLEET_MODEL=demo_model)
    first, other = fleet.await_nodes(2)

    os.kill(int(str(first["pid"])), signal.SIGKILL)

    again = wait_until(lambda: [node for node in fleet.reports() if node["pid"] not in (first["pid"], other["pid"])])
    assert [node["MASKFLEET_NODE"] for node in again] == [first["MASKFLEET_NODE"]]
    assert psutil.pid_exists(int(str(other["pid"])))
