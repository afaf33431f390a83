"""The fleet of one machine: its worker nodes, restarted when they die; all are drained together."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import MAX_NODES, WorkerSettings
from maskfleet.worker.node.device import CPU, OPENMP_PASSIVE_WAIT, Device, choose_devices
from maskfleet.worker.node.machine import usable_cores
from maskfleet.worker.node.memory import check_memory
from maskfleet.worker.node.names import node_names
from maskfleet.worker.node.supervisor import KeptChild, StopSignals, kill_child, start_child

logger = get_logger()

#: One node: a Celery worker with one child process, on the one device that it sees.
NODE_COMMAND = (sys.executable, "-m", "maskfleet.worker")
#: How often the fleet checks whether a node has exited, or a signal has arrived.
POLL_S = 0.1


class TooManyNodes(ValueError):
    """More nodes are asked for than one machine runs; the message says how many it may be."""


def run_fleet(
    selection: str,
    environment: Mapping[str, str],
    settings: WorkerSettings,
    command: Sequence[str] = NODE_COMMAND,
) -> None:
    """Run the nodes of each device until SIGTERM or SIGINT, on which each finishes its job; a second signal kills them.

    selection: ``cpu``, ``none``, ``all`` or numbers such as ``0,2``.  settings: ``slots_per_device`` nodes share each
    of these devices; the first node's health check is at ``health_port``, those of the others at the ports after it.
    Raises NoSuchDevice, TooManyNodes, TooLittleMemory.
    """
    signals = StopSignals()
    devices, slots = choose_devices(selection, environment), settings.slots_per_device
    if len(devices) * slots > MAX_NODES:
        raise TooManyNodes(
            f"{slots} workers on each of {len(devices)} devices are {len(devices) * slots}; one machine runs at most "
            f"{MAX_NODES}. Use a smaller --slots-per-device."
        )
    if slots > 1:
        check_memory(devices, slots, settings)
    places = [(device, name) for device in devices for name in node_names(device, slots)]
    nodes = []
    for number, (device, name) in enumerate(places):
        health_port = settings.health_port + number if settings.health_port else 0
        own = {"MASKFLEET_NODE": name, "MASKFLEET_HEALTH_PORT": str(health_port)}
        nodes.append(_start_node(name, device, _environment_of(device, environment, settings) | own, command))
    while not signals.count:
        for node in nodes:
            node.look()
        time.sleep(POLL_S)
    _drain(nodes, signals)


def _environment_of(device: Device, environment: Mapping[str, str], settings: WorkerSettings) -> dict[str, str]:
    """Return the environment of a device's nodes, but for what differs from slot to slot."""
    own = {
        **OPENMP_PASSIVE_WAIT,
        **environment,
        **device.environment,
        "MASKFLEET_DEVICE": device.kind,
        "MASKFLEET_SLOTS_PER_DEVICE": str(settings.slots_per_device),
    }
    if device.kind == CPU.kind and settings.slots_per_device > 1 and not settings.torch_threads:
        # Otherwise each would start as many threads as there are cores, and they would wait for each other.
        given = environment.get("OMP_NUM_THREADS", "")
        cores = int(given) if given.isdigit() else usable_cores()
        share = str(max(1, cores // settings.slots_per_device))
        own |= {"MASKFLEET_TORCH_THREADS": share, "OMP_NUM_THREADS": share}
    return own


def _start_node(name: str, device: Device, environment: Mapping[str, str], command: Sequence[str]) -> KeptChild:
    def start() -> subprocess.Popen[bytes]:
        return start_child(command, env=environment)

    node = KeptChild(name, start)
    logger.info("node_started", worker=name, device=device.model, visible=device.visible, pid=node.process.pid)
    return node


def _drain(nodes: list[KeptChild], signals: StopSignals) -> None:
    logger.info("fleet_draining", nodes=len(nodes))
    for node in nodes:
        with suppress(ProcessLookupError):
            node.process.send_signal(signal.SIGTERM)
    asked = signals.count
    running = list(nodes)
    while running:
        if signals.count > asked:
            logger.warning("fleet_killed", nodes=len(running))
            break
        for node in [node for node in running if node.process.poll() is not None]:
            logger.info("node_ended", worker=node.name, status=node.process.returncode)
            running.remove(node)
        time.sleep(POLL_S)
    for node in nodes:
        kill_child(node.process)  # and whatever a node that exited left behind
