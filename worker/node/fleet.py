"""The fleet of one machine: one worker node per device, restarted when it dies; all are drained together."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from maskfleet.jobs.logs import get_logger
from maskfleet.worker.node.device import OPENMP_PASSIVE_WAIT, Device, choose_devices
from maskfleet.worker.node.supervisor import KeptChild, StopSignals, kill_child, start_child

logger = get_logger()

#: One node: a Celery worker with one child process, on the one device that it sees.
NODE_COMMAND = (sys.executable, "-m", "maskfleet.worker")
#: How often the fleet checks whether a node has exited, or a signal has arrived.
POLL_S = 0.1


def run_fleet(
    selection: str, environment: Mapping[str, str], command: Sequence[str] = NODE_COMMAND, *, health_port: int = 0
) -> None:
    """Run a node on each device until SIGTERM or SIGINT, on which each finishes its job; a second signal kills them.

    selection: ``cpu``, ``all`` or numbers such as ``0,2``.  health_port: the first node's; the others use the ports
    after it; 0 for none.  Raises NoSuchDevice.
    """
    signals = StopSignals()
    nodes = [
        _start_node(device, environment, command, health_port + place if health_port else 0)
        for place, device in enumerate(choose_devices(selection, environment))
    ]
    while not signals.count:
        for node in nodes:
            node.look()
        time.sleep(POLL_S)
    _drain(nodes, signals)


def node_name(device: Device) -> str:
    """Return the name of a device's node, such as ``sam-gpu0@host``."""
    return f"sam-{device.label}@{socket.gethostname()}"


def _start_node(device: Device, environment: Mapping[str, str], command: Sequence[str], health_port: int) -> KeptChild:
    name = node_name(device)
    node_environment = {
        **OPENMP_PASSIVE_WAIT,
        **environment,
        **device.environment,
        "MASKFLEET_DEVICE": device.kind,
        "MASKFLEET_NODE": name,
        "MASKFLEET_HEALTH_PORT": str(health_port),
    }

    def start() -> subprocess.Popen[bytes]:
        return start_child(command, env=node_environment)

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
