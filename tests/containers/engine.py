"""Debian's podman and buildah, with a storage of their own, on a machine without a container engine's daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The programs, and the Debian package of each.
NEEDED = {
    "podman": "podman",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "crun": "crun",
    "catatonit": "catatonit",
    "iptables": "iptables",
    "ip": "iproute2",
}
#: Parts of podman that are not on the PATH.
HELPERS = {"/usr/lib/podman/netavark": "netavark", "/usr/lib/podman/aardvark-dns": "aardvark-dns"}
#: A container engine expects a tree of control groups that it may change; these run where it may not.
LIMITS = ("--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=5000:5000")
#: A mount namespace of one's own, in which the control groups are one pure cgroup2 tree.
_NAMESPACE = """
umount -R /sys/fs/cgroup 2> /dev/null
mount -t cgroup2 none /sys/fs/cgroup || exit 1
exec "$@"
"""


class ContainerError(Exception):
    """A command of the engine failed: what it said."""


def missing_packages() -> list[str]:
    """Return Debian's packages of what is not installed."""
    of_programs = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    return of_programs + [package for path, package in HELPERS.items() if not Path(path).exists()]


def in_namespace(command: Sequence[str], *, own_network: bool = False) -> list[str]:
    """Return the command that runs another one where containers can run.

    own_network: with a loopback of its own, so that no published port is taken.
    """
    network = ["--net"] if own_network else []
    up = "ip link set lo up || exit 1" if own_network else ""
    return ["unshare", "--mount", *network, "sh", "-c", up + _NAMESPACE, "sh", *command]


@dataclass(frozen=True, slots=True)
class Engine:
    """Images and containers in one folder.  Runs within ``in_namespace``."""

    folder: Path
    driver: str

    def podman(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run podman; return what it printed.  Raises ContainerError."""
        return _run(["podman", *self._storage(), "--cgroup-manager=cgroupfs", *arguments], timeout_s)

    def buildah(self, *arguments: str, timeout_s: float = 1800) -> str:
        """Run buildah; return what it printed.  Raises ContainerError."""
        return _run(["buildah", *self._storage(), *arguments], timeout_s)

    def inspect_image(self, image: str) -> dict[str, Any]:
        """Return what podman knows of an image."""
        (found,) = json.loads(self.podman("image", "inspect", image))
        return dict(found)

    def _storage(self) -> list[str]:
        folder = self.folder
        return [f"--root={folder / 'storage'}", f"--runroot={folder / 'run'}", f"--storage-driver={self.driver}"]


def choose_driver(folder: Path) -> str:
    """Return ``overlay`` where the folder's file system can be overlaid, else ``vfs``, which copies every layer."""
    parts = [folder / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True)
    lower, upper, work, merged = parts
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, str(merged)],
        check=False,
        capture_output=True,
    )
    shutil.rmtree(folder / "probe")
    return "overlay" if tried.returncode == 0 else "vfs"


def _run(command: Sequence[str], timeout_s: float) -> str:
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s)
    if ran.returncode != 0:
        raise ContainerError(
            f"{' '.join(command)}: exit status {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}"
        )
    sys.stderr.write(ran.stderr if "WARN" in ran.stderr else "")
    return ran.stdout.strip()
