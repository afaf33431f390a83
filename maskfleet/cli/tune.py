"""``maskfleet worker --tune``: measure how many workers should share a device, with servers of its own."""

from __future__ import annotations

import io
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from maskfleet.data import DEMO_PHOTO
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import SharedSettings, WorkerSettings
from maskfleet.stack.readiness import LogSince, StackFailed, upgrade_ledger
from maskfleet.stack.servers import ServerFailed, last_lines, start_redis, start_s3
from maskfleet.stack.stack import READY_DEADLINE_S
from maskfleet.stack.throughput import JobsFailed, JobStream, Throughput
from maskfleet.worker.node.device import CPU, Device, choose_devices, gpu_busy
from maskfleet.worker.node.machine import CpuClock
from maskfleet.worker.node.names import node_names
from maskfleet.worker.node.supervisor import start_child, stop_child

#: So many workers are tried, one after the other.
MOST_SLOTS = 4
#: Each is measured for at least this long, and for so many jobs of each worker; on a CPU a job may take a minute.
MEASURED_S, JOBS_OF_EACH, DEADLINE_S = 45.0, 3, 1800.0
#: The smallest number of workers that does so much of the best's jobs is recommended: each takes memory.
NEARLY = 0.95
#: A photograph of 12 megapixels, as phones take them.
MEGAPIXELS = 12
#: How long running jobs have when a fleet is stopped.
STOP_S = 30.0
#: The settings that workers under test take over; others, such as where Redis and S3 are, would lead to the service.
KEPT = (
    *("MODEL", "MODEL_REVISION", "PRECISION", "TORCH_THREADS", "LOAD_TIMEOUT_S"),
    *("MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS", "UPLOADS_AT_ONCE", "LOG_LEVEL"),
)
WORKER_COMMAND = (sys.executable, "-m", "maskfleet", "worker")


@dataclass(frozen=True, slots=True)
class Tried:
    """What so many workers did.  device_busy, cores_busy: shares of the time; None where it is not known."""

    slots: int
    throughput: Throughput
    device_busy: float | None
    cores_busy: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """How it is tried: with how many workers, for how long, and with what program."""

    most_slots: int = MOST_SLOTS
    measured_s: float = MEASURED_S
    jobs_of_each: int = JOBS_OF_EACH
    command: Sequence[str] = WORKER_COMMAND


def tune_slots(selection: str, environment: Mapping[str, str], run: Trial | None = None) -> None:
    """Measure the first of the devices, and print a table and the recommendation.

    Raises NoSuchDevice, and click's errors for what else is wrong.
    """
    run = run or Trial()
    device = choose_devices(selection, environment)[0]
    click.echo(
        f"Measuring {WorkerSettings().model_name} on {device.label} ({device.model}) with 1 to {run.most_slots} "
        f"workers, everything in {MEGAPIXELS} megapixels.  The service that this shell is configured for is left alone."
    )
    try:
        tried = list(_measured(device, environment, run))
    except (ServerFailed, StackFailed, JobsFailed) as error:
        raise click.ClickException(str(error)) from error
    Console(width=None if sys.stdout.isatty() else 120).print(_table(tried))
    slots = recommended(tried)
    click.echo(f"Use --slots-per-device {slots}, or MASKFLEET_SLOTS_PER_DEVICE={slots}.")


def recommended(tried: Sequence[Tried]) -> int:
    """Return the smallest number of workers that does nearly as many jobs as the best."""
    best = max(one.throughput.per_minute for one in tried)
    return min(one.slots for one in tried if one.throughput.per_minute >= NEARLY * best)


def _measured(device: Device, environment: Mapping[str, str], run: Trial) -> Iterator[Tried]:
    with tempfile.TemporaryDirectory(prefix="maskfleet-tune-") as name, servers(Path(name)) as settings:
        photo = large_photo()
        for slots in range(1, run.most_slots + 1):
            try:
                one = _try(slots, device, environment, settings, photo, run, Path(name))
            except (DoesNotFit, JobsFailed) as error:  # they may also run out of memory with the first jobs
                if slots == 1:
                    raise
                click.echo(f"Not with {_workers(slots)}. {error}")
                return
            click.echo(f"{_workers(slots)}: {one.throughput.per_minute:.1f} jobs a minute")
            yield one


class DoesNotFit(StackFailed):
    """The fleet does not start, or does not go on, with so many workers."""


def _try(
    slots: int,
    device: Device,
    environment: Mapping[str, str],
    settings: SharedSettings,
    photo: bytes,
    run: Trial,
    folder: Path,
) -> Tried:
    log = folder / f"worker-{slots}.log"
    own = settings_for_workers(environment, settings)
    # The device alone, by the entry by which it is visible now.
    shown = {} if device.kind == CPU.kind else {"CUDA_VISIBLE_DEVICES": device.visible}
    which = CPU.label if device.kind == CPU.kind else "0"
    command = (*run.command, "--devices", which, "--slots-per-device", str(slots))
    process = start_child(command, env=own | shown, log=log)
    stream = JobStream(settings, photo)
    try:
        since = LogSince(log)
        registry = WorkerRegistry(connect(settings))
        busy: list[float] = []
        asked_at = 0.0

        def check() -> None:
            nonlocal asked_at
            since.raise_load_failure()
            if process.poll() is not None:
                raise DoesNotFit(f"The fleet ended. {last_lines(log)}")
            if time.monotonic() - asked_at >= 1:  # the time that NVML's answer is about
                asked_at = time.monotonic()
                busy.extend(share for share in (gpu_busy(device),) if share is not None)

        await_nodes(registry, node_names(device, slots), check)
        stream.warm_up(slots, check, deadline_s=DEADLINE_S)
        cpu = CpuClock()
        busy.clear()
        throughput = stream.measure(
            slots, check, least_s=run.measured_s, least_jobs=run.jobs_of_each * slots, deadline_s=DEADLINE_S
        )
        return Tried(slots, throughput, sum(busy) / len(busy) if busy else None, cpu.busy())
    finally:
        stream.cancel()
        stop_child(process, grace_s=STOP_S)


@contextmanager
def servers(folder: Path) -> Iterator[SharedSettings]:
    """Run a Redis and an S3 on free ports of this machine; yield how they are reached.  Raises ServerFailed."""
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    with ExitStack() as exits:
        redis = start_redis(folder / "redis", log=folder / "redis.log")
        exits.callback(redis.stop)
        bucket = SharedSettings.model_fields["bucket"].default
        s3 = start_s3(
            folder / "s3", access_key=access_key, secret_key=secret_key, buckets=(bucket,), log=folder / "s3.log"
        )
        exits.callback(s3.stop)
        settings = SharedSettings(
            redis_url=SecretStr(redis.url),
            redis_ca="",
            s3_endpoint=s3.url,
            s3_public_endpoint="",
            s3_region="us-east-1",
            s3_access_key=SecretStr(access_key),
            s3_secret_key=SecretStr(secret_key),
            bucket=bucket,
            allowed_buckets=(),
            tenant_weights={},
        )
        upgrade_ledger(settings)
        yield settings


def settings_for_workers(environment: Mapping[str, str], settings: SharedSettings) -> dict[str, str]:
    """Return the environment of workers that use these servers and none of the shell's."""
    kept = {f"MASKFLEET_{name}" for name in KEPT}
    return {
        **{name: value for name, value in environment.items() if not name.startswith("MASKFLEET_") or name in kept},
        "MASKFLEET_REDIS_URL": settings.redis_url.get_secret_value(),
        "MASKFLEET_S3_ENDPOINT": settings.s3_endpoint,
        "MASKFLEET_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "MASKFLEET_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "MASKFLEET_BUCKET": settings.bucket,
        "MASKFLEET_DRAIN_GRACE_S": "0",
    }


def large_photo(megapixels: float = MEGAPIXELS) -> bytes:
    """Return the example photo, enlarged, as JPEG."""
    with Image.open(DEMO_PHOTO) as photo:
        factor = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
        size = (round(photo.width * factor), round(photo.height * factor))
        large = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    data = io.BytesIO()
    large.save(data, "JPEG", quality=90)
    return data.getvalue()


def await_nodes(registry: WorkerRegistry, names: Sequence[str], check: Callable[[], None]) -> None:
    """Wait until workers have announced themselves.  check: called often; it may raise.  Raises StackFailed."""
    deadline = time.monotonic() + READY_DEADLINE_S
    while not all(registry.find(name) for name in names):
        check()
        if time.monotonic() > deadline:
            raise StackFailed(f"The workers were not ready within {READY_DEADLINE_S:g} s.")
        time.sleep(0.1)


def _table(tried: Sequence[Tried]) -> Table:
    table = Table(title="maskfleet worker --tune")
    for title in ("workers", "jobs a minute", "seconds a job", "GPU busy", "cores busy"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in tried:
        table.add_row(
            str(one.slots),
            f"{one.throughput.per_minute:.1f}",
            f"{one.throughput.run_s:.2f}",
            _percent(one.device_busy),
            _percent(one.cores_busy),
        )
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
