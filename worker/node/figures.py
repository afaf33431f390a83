"""What a worker counts about itself, for Prometheus: how it started, its jobs, where their time went, its GPU.

The child process counts, in files in a folder that the node's parent made; the parent shows them.  So what was counted
outlives the child, and the parent answers while the child is busy.  Without a health port nobody asks, and the child
counts in its own memory.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import cache
from pathlib import Path

import pynvml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from maskfleet.jobs.ledger.outcomes import Reply
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.metrics_folder import MULTIPROCESS_DIR, MetricsFolder
from maskfleet.jobs.schema.record import EmbeddingOrigin, Metrics
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.stages import Timings

logger = get_logger()

#: The events at the end of an attempt, in worker/attempt.py, and what they are called here.
_OUTCOMES = {
    "job_succeeded": "succeeded",
    "job_failed": "failed",
    "job_canceled": "canceled",
    "job_released": "released",
    "job_drained": "drained",
    "job_fenced": "fenced",
}


#: Seconds, from a click on a known image to a large image with crops; and of waits, up to an hour.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class StartStage(StrEnum):
    """The stages of a start, in their order.

    Python and packages; the weights, read and then moved to the device; the encoder, if it is compiled, and the mask
    kernels; the self-test and the model's test; the first message.
    """

    IMPORT = "import"
    LOAD = "load"
    DEVICE = "device"
    COMPILE = "compile"
    TEST = "test"
    CANARY = "canary"


class WorkerFigures:
    """Counts of this process."""

    def __init__(self) -> None:
        if MULTIPROCESS_DIR in os.environ:
            # One child follows another; each goes on counting where the last one ended.
            values.ValueClass = values.MultiProcessValue(lambda: "child")  # type: ignore[no-untyped-call]  # the library's
        registry = CollectorRegistry()
        self._start = Gauge(
            "maskfleet_worker_start_seconds",
            "How long each stage of the worker's last start took; their sum is from the process's start to ready.",
            ("stage",),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._jobs = Counter(
            "maskfleet_worker_jobs", "Attempts that ended, by outcome.", ("outcome",), registry=registry
        )
        self._wait = Histogram(
            "maskfleet_worker_wait_seconds",
            "How long attempts' jobs had waited: since they were created, or were handed back.",
            registry=registry,
            buckets=_WAIT_BUCKETS,
        )
        self._stages = Histogram(
            "maskfleet_worker_stage_seconds",
            "How long each stage of an attempt took; upload: beyond the making of outputs.",
            ("stage",),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._outputs = Histogram(
            "maskfleet_worker_output_seconds",
            "How long the making of each output took.",
            ("output",),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._points = Counter("maskfleet_worker_points", "Prompts that were decoded.", registry=registry)
        self._smaller = Counter(
            "maskfleet_worker_smaller_batches",
            "Jobs that decoded fewer points at once than they asked for, because memory ran short.",
            registry=registry,
        )
        self._halvings = Counter(
            "maskfleet_worker_halved_batches",
            "Batches of points that did not fit in memory and were halved, once for each time.",
            registry=registry,
        )
        self._embeddings = Counter(
            "maskfleet_worker_embeddings",
            "Embeddings that jobs used, by where they are from.",
            ("origin",),
            registry=registry,
        )
        self._tests = Counter(
            "maskfleet_worker_model_tests", "Tests of the model, by result.", ("result",), registry=registry
        )
        self._model_ok = Gauge(
            "maskfleet_worker_model_ok",
            "Whether the model passed its last test.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._reached_at = time.monotonic() - process_age_s()
        self._took_s: dict[StartStage, float] = {}

    def reached(self, stage: StartStage) -> bool:
        """Note the end of a stage of the start; return False unless it is its first end, which alone counts."""
        if stage in self._took_s:
            return False
        now = time.monotonic()
        self._took_s[stage] = now - self._reached_at
        with _uncounted():
            self._start.labels(str(stage)).set(self._took_s[stage])
        self._reached_at = now
        return True

    @property
    def start_s(self) -> float | None:
        """How long the start took, from the process's start to the first message; None before that."""
        return sum(self._took_s.values()) if StartStage.CANARY in self._took_s else None

    @property
    def start_fields(self) -> dict[str, float]:
        """How long the start and each of its stages took, for the log."""
        stages = {f"{stage}_s": round(took_s, 3) for stage, took_s in self._took_s.items()}
        return {"start_s": round(sum(self._took_s.values()), 3), **stages}

    def model_tested(self, *, ok: bool) -> None:
        """Count a test of the model."""
        with _uncounted():
            self._tests.labels("passed" if ok else "failed").inc()
            self._model_ok.set(int(ok))

    def ended(self, event: str, reply: Reply) -> None:
        """Count the end of an attempt.  event: as it is logged.  reply: of the ledger."""
        outcome = _OUTCOMES.get(event, "other")
        if reply is Reply.CANCELED:
            outcome = "canceled"
        elif reply is not Reply.OK:
            outcome = "fenced"
        with _uncounted():
            self._jobs.labels(outcome).inc()

    def attempted(self, wait_s: float | None, timings: Timings) -> None:
        """Count how long an attempt took, whatever came of it.  wait_s: before it; None if unknown."""
        with _uncounted():
            if wait_s is not None:
                self._wait.observe(wait_s)
            for stage, seconds in timings.stages.items():
                self._stages.labels(str(stage)).observe(seconds)
            self._halvings.inc(timings.halvings)
            for output, seconds in timings.outputs.items():
                self._outputs.labels(output).observe(seconds)

    def segmented(self, spec: object, metrics: Metrics) -> None:
        """Count what a job that succeeded did."""
        with _uncounted():
            self._points.inc(metrics.points)
            asked = getattr(getattr(spec, "params", None), "points_per_batch", 0)  # not every mode decodes points
            if 0 < metrics.points_per_batch < asked:
                self._smaller.inc()
            origin = getattr(metrics, "embedding", None)  # of a few that the model names
            if origin and origin is not EmbeddingOrigin.NONE:
                self._embeddings.labels(str(origin)).inc()


@cache
def figures() -> WorkerFigures:
    """Return the counts of this process."""
    return WorkerFigures()


def _uncounted() -> suppress:
    """Suppress what a folder that is gone or full raises: that a job is not counted changes nothing for it."""
    return suppress(OSError, ValueError)


def shown_figures(settings: WorkerSettings) -> Callable[[], bytes]:
    """Have this process's children count in a folder; return the function that shows what they counted.

    To be called before any child is started.
    """
    folder = MetricsFolder("worker")
    atexit.register(folder.remove)
    os.environ[MULTIPROCESS_DIR] = str(folder.path)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder.path))  # type: ignore[no-untyped-call]  # the library leaves its arguments untyped
    if settings.device == "cuda":
        registry.register(_GpuCollector(os.environ.get("CUDA_VISIBLE_DEVICES", "0")))

    def show() -> bytes:
        try:
            return bytes(generate_latest(registry))
        except (OSError, ValueError) as error:
            logger.warning("figures_not_shown", reason=str(error))
            return b""

    return show


def process_age_s() -> float:
    """Return how long ago this process was started; 0 where the system does not say."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since the system's boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0


class _GpuCollector(Collector):
    """A GPU's memory and use, as its driver says; nothing where it says nothing."""

    def __init__(self, visible: str) -> None:
        """visible: the one entry of CUDA_VISIBLE_DEVICES."""
        self._visible = visible

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would already ask the driver

    def collect(self) -> Iterator[Metric]:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        try:
            yield from list(self._figures())
        except pynvml.NVMLError as error:
            logger.warning("gpu_not_shown", reason=str(error))
        finally:
            pynvml.nvmlShutdown()

    def _figures(self) -> Iterator[Metric]:
        entry = self._visible.strip()
        by_index = entry.isdigit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(entry)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(entry)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        for name, text, value in (
            ("memory_used_bytes", "Memory in use, by all processes.", memory.used),
            ("memory_total_bytes", "All memory.", memory.total),
        ):
            yield GaugeMetricFamily(f"maskfleet_worker_gpu_{name}", text, float(value))
        with suppress(pynvml.NVMLError):  # a MIG slice does not say
            used = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            yield GaugeMetricFamily("maskfleet_worker_gpu_use_ratio", "How much of the time it computed, lately.", used)
