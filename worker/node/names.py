"""The names of a machine's nodes, one for each slot of a device."""

from __future__ import annotations

import re
import socket

from maskfleet.worker.node.device import Device

#: A node that shares its device: ``sam-gpu0.1@host``.  The claim script knows this form as well.
_SLOT = re.compile(r"^(sam-[^@.]+)\.[0-9]+(@.*)$")


def node_names(device: Device, slots: int = 1) -> tuple[str, ...]:
    """Return the names of a device's nodes: ``sam-gpu0@host``, or if several share it ``sam-gpu0.0@host``, …."""
    host = socket.gethostname()
    if slots == 1:
        return (f"sam-{device.label}@{host}",)
    return tuple(f"sam-{device.label}.{slot}@{host}" for slot in range(slots))


def device_of(node: str) -> str:
    """Return a node's name without its slot: those that share a device share what may be wrong with it."""
    return _SLOT.sub(r"\1\2", node)


def host_of(node: str) -> str:
    """Return the machine of a node that is named as in ``sam-gpu0@host``."""
    return node.rpartition("@")[2]
