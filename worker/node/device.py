"""Choose the devices of a machine's workers.  Asks NVML, the driver's own library; never imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from maskfleet.jobs.settings import NO_DEVICE


class NoSuchDevice(ValueError):
    """The requested device does not exist; the message says which do."""


#: Must be set before torch is imported.  Otherwise OpenMP's threads spin while they wait for each other; if another
#: process wants the same core, 1,024 points of the bundled model took 65 s with two threads and take 3 s with this.
OPENMP_PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, slots=True)
class Device:
    """A device for one worker node.

    label: ``cpu``, ``outputs``, or such as ``gpu0``.  kind: ``cpu``, ``cuda`` or ``none``.
    visible: its CUDA_VISIBLE_DEVICES.
    """

    label: str
    kind: str
    visible: str
    model: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables that show a process only this device; set them before torch is imported."""
        # NVML numbers GPUs by PCI bus; CUDA does so only with this setting.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.visible}


CPU = Device("cpu", "cpu", "", "CPU")
#: Of nodes that take only jobs which need no model.
NONE = Device("outputs", NO_DEVICE, "", "no model")


def choose_devices(selection: str, environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Return the devices for ``cpu``, ``none``, ``all`` or numbers such as ``0,2``.

    If CUDA_VISIBLE_DEVICES is set, ``all`` and the numbers refer to its entries, as in CUDA itself.
    Raises NoSuchDevice.
    """
    if selection == "cpu":
        return (CPU,)
    if selection == NO_DEVICE:
        return (NONE,)
    devices = list_gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    if not devices:
        raise NoSuchDevice("No GPU found. Use `--devices cpu` to run on the CPU.")
    if selection == "all":
        return devices
    numbers = [part.strip() for part in selection.split(",")]
    known = {str(number): device for number, device in enumerate(devices)}
    for number in numbers:
        if number not in known:
            listed = ", ".join(f"{number} ({device.model})" for number, device in known.items())
            raise NoSuchDevice(f"There is no device {number!r}. Available: {listed}; or use `all` or `cpu`.")
    if len(set(numbers)) < len(numbers):
        raise NoSuchDevice(f"{selection!r} names a device twice; each device runs one worker.")
    return tuple(known[number] for number in numbers)


def free_gpu_memory(device: Device) -> int | None:
    """Return how many bytes are free on a GPU or MIG slice; None if the driver does not say."""
    with _driver():
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_handle(device.visible)).free)
        except pynvml.NVMLError:
            return None


def list_gpus(visible: str | None) -> tuple[Device, ...]:
    """List the machine's GPUs, or those that ``visible``, a value of CUDA_VISIBLE_DEVICES, selects.

    Raises NoSuchDevice if the driver does not respond or an entry names no GPU.
    """
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    with _driver():
        count = pynvml.nvmlDeviceGetCount()
        entries = range(count) if visible is None else [entry.strip() for entry in visible.split(",")]
        return tuple(_gpu(str(entry), count) for entry in entries)


def gpu_busy(device: Device) -> float | None:
    """Return the share of the last moments, 0 to 1, in which a GPU computed; None on a CPU or if it does not say."""
    if device.kind != "cuda":
        return None
    with _driver():
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(_handle(device.visible)).gpu) / 100
        except pynvml.NVMLError:
            return None


@contextmanager
def _driver() -> Iterator[None]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoSuchDevice(
            f"The NVIDIA driver does not respond ({error}). Use `--devices cpu` to run on the CPU."
        ) from error
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _gpu(entry: str, count: int) -> Device:
    """Return the device for an entry of CUDA_VISIBLE_DEVICES: a number, or the UUID (prefix) of a GPU or MIG slice."""
    if not entry.isdigit():
        known = [_model(number) for number in range(count) if _uuid(number).startswith(entry)]
        if not entry.startswith("MIG-") and len(known) != 1:
            raise NoSuchDevice(f"CUDA_VISIBLE_DEVICES names {entry!r}, which is not one of this machine's GPUs.")
        slice_or_gpu, _, number = entry.lower().partition("-")
        return Device(f"{slice_or_gpu}-{number[:8]}", "cuda", entry, known[0] if known else "MIG slice")
    if int(entry) >= count:
        raise NoSuchDevice(f"CUDA_VISIBLE_DEVICES names {entry}; this machine has {count} GPUs, numbered from 0.")
    return Device(f"gpu{entry}", "cuda", entry, _model(int(entry)))


def _handle(entry: str) -> Any:  # Any: NVML ships no types
    """Return NVML's handle for an entry of CUDA_VISIBLE_DEVICES."""
    if entry.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(entry))
    if entry.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(entry)
    number = next(n for n in range(pynvml.nvmlDeviceGetCount()) if _uuid(n).startswith(entry))  # its start is enough
    return pynvml.nvmlDeviceGetHandleByIndex(number)


def _model(number: int) -> str:
    return _text(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(number)))


def _uuid(number: int) -> str:
    return _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number)))


def _text(answer: bytes | str) -> str:
    """Decode a string of NVML; its Python package returned bytes before version 12."""
    return answer.decode() if isinstance(answer, bytes) else answer


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the device or the machine ran out of memory; judged by name, as below."""
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError")


def is_lost_device(error: BaseException) -> bool:
    """Return True if an error leaves the process's CUDA context unusable, such as an illegal memory access.

    Judged by name and text, so that torch need not be imported here.
    """
    text = str(error)
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "device-side assert" in text
