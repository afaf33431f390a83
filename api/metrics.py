"""Metrics for Prometheus: the requests served, and the state of the ledger at the time of the scrape."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.fleet import OUTPUTS, FleetRules, ModelLoad
from maskfleet.jobs.ledger.counts import JobCounts
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.fleet import Fleet
from maskfleet.jobs.ledger.reconciler import MENDABLE
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.metrics_folder import MULTIPROCESS_DIR
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.delivery import DeliveryState
from maskfleet.jobs.schema.fleet import ModelFleet
from maskfleet.jobs.status import ENDED

#: From one read of the ledger to the upload of an image of tens of megabytes.
_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

logger = get_logger()


@dataclass(frozen=True, slots=True)
class JobFigures:
    """The sources of the metrics about jobs."""

    job_counts: JobCounts
    deliveries: Deliveries
    fleet: Fleet
    epoch: Epoch


class RequestMetrics:
    """Counts and times requests, across all processes of this server."""

    def __init__(self, jobs: JobFigures) -> None:
        self._jobs = jobs
        restore_folder()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "maskfleet_http_requests", "Requests served.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "maskfleet_http_request_seconds",
            "Time to serve a request, without the time that it was held on purpose.",
            ("method", "route"),
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self._held = Gauge(
            "maskfleet_held_responses",
            "Event streams and waits that are held open.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        # A caller may send any word as its method; the label's values must stay few.
        known = method if method in _METHODS else "other"
        try:
            self._requests.labels(known, route, str(status)).inc()
            self._seconds.labels(known, route).observe(seconds)
        except (OSError, ValueError) as error:
            # The folder is gone, or its disk is full.  The request was served; that it is not counted changes nothing.
            logger.warning("request_not_counted", reason=str(error))
            restore_folder()

    def count_held(self, change: int) -> None:
        """Count a held response: 1 when it begins, -1 when it ends."""
        with contextlib.suppress(OSError, ValueError):  # see ``count``
            self._held.inc(change)

    def exposition(self, models: tuple[str, ...], rules: FleetRules) -> bytes:
        """Return all metrics in Prometheus' text format."""
        jobs = CollectorRegistry()
        jobs.register(_JobCollector(self._jobs, models, rules))
        return self._counted() + bytes(generate_latest(jobs))

    def _counted(self) -> bytes:
        if MULTIPROCESS_DIR not in os.environ:
            return bytes(generate_latest(self._registry))
        registry = CollectorRegistry()
        try:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves its arguments untyped
            return bytes(generate_latest(registry))
        except (OSError, ValueError) as error:
            logger.warning("requests_not_shown", reason=str(error))
            restore_folder()
            return b""


def restore_folder() -> None:
    """Make the folder again if somebody removed it.

    Processes that counted in the old one go on counting there, unseen, until they are replaced.
    """
    folder = os.environ.get(MULTIPROCESS_DIR)
    if folder:
        with contextlib.suppress(OSError):
            Path(folder).mkdir(mode=0o700, exist_ok=True)


class _JobCollector(Collector):
    def __init__(self, jobs: JobFigures, models: tuple[str, ...], rules: FleetRules) -> None:
        self._jobs = jobs
        self._models = models
        self._rules = rules

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would already query the ledger

    def collect(self) -> Iterator[Metric]:
        try:
            figures = list(self._figures())
        except QueueUnavailable:
            figures = []
        yield GaugeMetricFamily("maskfleet_ledger_up", "Whether Redis responded to this scrape.", float(bool(figures)))
        yield GaugeMetricFamily(
            "maskfleet_ledger_writable", "Whether Redis accepts writes.", float(self._is_writable())
        )
        yield from figures

    def _is_writable(self) -> float:
        try:
            self._jobs.epoch.note()
        except QueueUnavailable:
            return 0.0
        return 1.0

    def _figures(self) -> Iterator[Metric]:
        totals = self._jobs.job_counts.totals()
        jobs = CounterMetricFamily("maskfleet_jobs", "Jobs that have ended, by final status.", labels=("status",))
        for status in sorted(ENDED):
            jobs.add_metric((status,), totals.get(status, 0))
        yield jobs
        for name, text in (
            ("jobs_created", "Jobs accepted."),
            ("attempts_fenced", "Times that a worker was refused because it no longer held the job."),
            ("jobs_requeued", "Jobs taken back from a worker whose lease ran out."),
            ("jobs_retried", "Failed jobs that their owners retried."),
            ("bells_rung", "Times that the courier woke workers for jobs that waited unheard."),
        ):
            yield CounterMetricFamily(f"maskfleet_{name}", text, totals.get(name.rpartition("_")[2], 0))
        mended = CounterMetricFamily(
            "maskfleet_ledger_mended", "Entries of the ledger that did not match the records.", labels=("what",)
        )
        for what in MENDABLE:
            mended.add_metric((what,), totals.get(f"mended_{what}", 0))
        yield mended
        webhooks = CounterMetricFamily(
            "maskfleet_deliveries", "Webhooks that have ended, by final state.", labels=("state",)
        )
        for state in DeliveryState:
            if state is not DeliveryState.WAITING:
                webhooks.add_metric((state,), totals.get(f"webhooks_{state}", 0))
        yield webhooks
        loads = self._jobs.fleet.loads((*self._models, OUTPUTS)).models
        yield from _class_figures(loads)
        yield from _model_figures(loads, self._rules)
        for name, text, value in (
            (
                "ledger_lost_timestamp_seconds",
                "When it was noticed that Redis lost the ledger; 0 if it never was.",
                self._jobs.job_counts.lost_ms() / 1000,
            ),
            ("jobs_processing", "Jobs that are running.", self._jobs.job_counts.processing()),
            ("deliveries_waiting", "Webhooks still to be sent.", self._jobs.deliveries.waiting()),
        ):
            yield GaugeMetricFamily(f"maskfleet_{name}", text, value)


def _class_figures(loads: tuple[ModelLoad, ...]) -> Iterator[Metric]:
    """Yield what is known of each queue."""
    labels = ("queue", "model", "priority")
    queued = GaugeMetricFamily("maskfleet_jobs_queued", "Jobs that are waiting.", labels=labels)
    running = GaugeMetricFamily("maskfleet_jobs_running", "Jobs that are running, by queue.", labels=labels)
    oldest = GaugeMetricFamily(
        "maskfleet_oldest_queued_seconds", "The age of the oldest waiting job; 0 for none.", labels=labels
    )
    pace = GaugeMetricFamily(
        "maskfleet_job_seconds", "How long a job takes, as measured lately; 0 before one has succeeded.", labels=labels
    )
    for load in loads:
        for one in load.classes:
            values = (queue_name(load.model, one.priority), load.model, str(one.priority))
            queued.add_metric(values, one.queued)
            running.add_metric(values, one.running)
            oldest.add_metric(values, one.oldest_s)
            pace.add_metric(values, one.job_s or 0.0)
    yield from (queued, running, oldest, pace)


def _model_figures(loads: tuple[ModelLoad, ...], rules: FleetRules) -> Iterator[Metric]:
    """Yield what is known of each model's workers."""
    labels = ("model",)
    desired = GaugeMetricFamily("maskfleet_desired_workers", "How many workers there should be.", labels=labels)
    backlog = GaugeMetricFamily(
        "maskfleet_backlog_seconds", "How long one worker would take for all queued and running jobs.", labels=labels
    )
    ready = GaugeMetricFamily("maskfleet_workers_ready", "Workers with their model loaded.", labels=labels)
    withdrawn = GaugeMetricFamily(
        "maskfleet_workers_withdrawn", "Workers that take no jobs until their self-test passes.", labels=labels
    )
    states = GaugeMetricFamily("maskfleet_workers", "Workers, by what they are doing.", labels=("model", "state"))
    for load in loads:
        view = ModelFleet.of(load, rules)
        desired.add_metric((load.model,), view.desired_workers)
        backlog.add_metric((load.model,), view.backlog_s)
        ready.add_metric((load.model,), load.workers.ready)
        withdrawn.add_metric((load.model,), load.workers.withdrawn)
        for state, count in view.workers.counts().items():
            states.add_metric((load.model, state), count)
    yield from (desired, backlog, ready, withdrawn, states)
