"""The worker, ``python -m maskfleet.worker``: one Celery node for one device, one child that holds the model.

Celery queues, routes, supervises the child and enforces limits; the ledger holds a job's true state.
The parent never imports torch.  The child is spawned, not forked, so that it can use CUDA safely.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from celery import Task, current_app, shared_task
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down

from maskfleet.jobs.errors import JobError, NodeFault, QueueUnavailable
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.version import check_at_start
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.logs import configure_logs, get_logger
from maskfleet.jobs.messages import TASK_NAME, Bells, Publisher, celery_app, is_ours
from maskfleet.jobs.queue import canary_queue, node_queues
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.tracing import start_tracing, stop_tracing
from maskfleet.worker.model_process import WorkerChild
from maskfleet.worker.node.figures import StartStage, figures, shown_figures
from maskfleet.worker.node.health import serve_health
from maskfleet.worker.node.importing import uncollected
from maskfleet.worker.node.loading import announced_as_loading

if TYPE_CHECKING:
    from maskfleet.jobs.schema.record import ModelSpec
    from maskfleet.jobs.storage import Store
    from maskfleet.worker.attempt import Workbench
    from maskfleet.worker.embeddings.job_image import JobImage
    from maskfleet.worker.image.sandbox import Sandbox
    from maskfleet.worker.output.artifacts import Segmented, SegmentStep
    from maskfleet.worker.sam.prompts import MaskInputs
    from maskfleet.worker.steps import Watch

logger = get_logger()

#: A task's hard limit, above the longest run_timeout_s that a spec may set; the lease ends the job earlier.
HARD_LIMIT_S = 3600 + 300
#: A child that cannot load its model waits this long before it exits and another one tries.
LOAD_RETRY_S = 10.0

#: What this child process holds; Celery gives a task no other way to reach it.
_child: WorkerChild | None = None


@shared_task(name=TASK_NAME, bind=True)  # type: ignore[untyped-decorator]  # celery ships no types
def hear(task: Task, argument: str) -> None:
    """Handle a bell or a canary; this is the only Celery task."""
    if _child is None:
        raise RuntimeError("the task runs outside a worker's child process")
    if not is_ours(argument):
        logger.error("message_refused", argument=repr(argument)[:80])  # something else is writing to our queues
        return
    _child.hear(argument, str(task.request.delivery_info.get("routing_key", "")))


@worker_process_init.connect  # type: ignore[untyped-decorator]  # celery ships no types
def load(**_: object) -> None:
    """Load the model in a newly started child process; exit the child if that fails."""
    global _child
    settings = WorkerSettings()
    start_tracing("worker", settings.node)
    try:
        client = connect(settings)
        with announced_as_loading(WorkerRegistry(client), settings):
            bench = current_app.conf.make_workbench(settings)
            figures().reached(StartStage.COMPILE)
            child = WorkerChild(bench, WorkerRegistry(client), Publisher(settings), Epoch(client))
            figures().reached(StartStage.TEST)
        child.begin()
        _child = child
    except Exception as error:  # noqa: BLE001  Celery would swallow it, and hand jobs to a child without a model
        code, detail = (error.code, error.detail) if isinstance(error, JobError) else (type(error).__name__, str(error))
        logger.error("model_not_loaded", model=settings.model, code=code, detail=detail)
        time.sleep(LOAD_RETRY_S)
        os._exit(1)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # celery ships no types
def leave(**_: object) -> None:
    if _child is not None:
        _child.leave()
    stop_tracing()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery ships no types
def drain(**_: object) -> None:
    """Start the drain: claim nothing more; a job that does not finish in time goes back to the queue, uncharged."""
    settings = WorkerSettings()
    try:
        Ledger(connect(settings), settings.retention_s).drain(settings.node, settings.drain_grace_s)
    except QueueUnavailable:
        logger.warning("drain_not_recorded")  # the job's lease runs out instead


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery ships no types
def set_up_logs(**_: object) -> None:
    settings = WorkerSettings()
    configure_logs(settings.log_level, program="worker", worker=settings.node)


def make_workbench(settings: WorkerSettings) -> Workbench:
    """Connect to the services, load the model and compile the mask kernels."""
    if not settings.has_model:
        return _bench_without_model(settings)
    with uncollected():
        import torch

        from maskfleet.jobs.storage import Store
        from maskfleet.worker.device_lock import NOT_SHARED, lock_of
        from maskfleet.worker.embeddings.cache import EmbeddingCache
        from maskfleet.worker.golden import ModelTest, read_golden
        from maskfleet.worker.image.sandbox import Sandbox
        from maskfleet.worker.masks import mask
        from maskfleet.worker.output import formats
        from maskfleet.worker.sam.model import load_model
        from maskfleet.worker.segment_step import segment_and_format

    figures().reached(StartStage.IMPORT)

    started = time.monotonic()
    sandbox = Sandbox()  # it starts while the model is loaded
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    model = load_model(
        settings.model,
        settings.device,
        settings.precision,
        revision=settings.model_revision or None,
        compile_as=settings.compile,
        reached=lambda stage: figures().reached(StartStage(stage)),
    )
    if settings.device == "cuda" and settings.slots_per_device > 1:
        # One worker's large batch must not take the memory of another's; one that meets the limit is halved.
        torch.cuda.set_per_process_memory_fraction(1 / settings.slots_per_device)
    mask.warm_up()
    formats.warm_up()
    store, embeddings = Store(settings), None
    if settings.embedding_cache_bytes or settings.embedding_store:
        embeddings = EmbeddingCache(model, store if settings.embedding_store else None, settings.embedding_cache_bytes)
    # On a CPU each worker has its own cores.
    device_lock = NOT_SHARED if settings.device == "cpu" else lock_of(settings.node, settings.slots_per_device)
    segment = partial(segment_and_format, model, embeddings=embeddings, device_lock=device_lock)
    test_model = ModelTest(model, read_golden(settings.model, settings.golden_file))
    bench = replace(workbench_for(segment, settings, store, sandbox), test_model=test_model)
    logger.info("model_loaded", model=settings.model_name, device=settings.device, load_s=time.monotonic() - started)
    return bench


def _bench_without_model(settings: WorkerSettings) -> Workbench:
    """Connect to the services and compile the kernels that write masks; neither torch nor a model is loaded."""
    with uncollected():
        from maskfleet.worker import export  # noqa: F401  (so that the first job need not)
        from maskfleet.worker.image.sandbox import Sandbox
        from maskfleet.worker.masks import rle
        from maskfleet.worker.output import formats

    figures().reached(StartStage.IMPORT)
    started = time.monotonic()
    sandbox = Sandbox()
    rle.warm_up()
    formats.warm_up()
    bench = workbench_for(_no_model, settings, sandbox=sandbox)
    logger.info("kernels_loaded", device=settings.device, load_s=time.monotonic() - started)
    return bench


def _no_model(photo: JobImage, spec: ModelSpec, watch: Watch, mask_inputs: MaskInputs) -> Segmented:  # noqa: ARG001
    """Refuse a job that is not of this node's queues."""
    raise NodeFault("no_model", "This worker has no model, and takes only jobs that need none.")


def workbench_for(
    segment: SegmentStep, settings: WorkerSettings, store: Store | None = None, sandbox: Sandbox | None = None
) -> Workbench:
    """Connect to the services, and wait until images can be decoded; the worker needs torch only if ``segment`` does.

    store: the one that ``segment`` uses, too, so that one day's new credentials are both's.  sandbox: one that has been
    started already.
    """
    from maskfleet.jobs.storage import Store
    from maskfleet.worker.attempt import Workbench
    from maskfleet.worker.egress import egress_session
    from maskfleet.worker.embeddings.known_images import KnownImages
    from maskfleet.worker.embeddings.later import LaterWrites
    from maskfleet.worker.image.sandbox import Sandbox

    sandbox = sandbox or Sandbox()
    client = connect(settings)
    store = store or Store(settings)
    bench = Workbench(
        ledger=Ledger(client, settings.retention_s, settings.tenant_weights),
        worker_registry=WorkerRegistry(client),
        bells=Bells(client, Publisher(settings)),
        store=store,
        egress=egress_session(
            allow_private=settings.egress_allow_private,
            ports=settings.egress_ports,
            networks=settings.egress_allow_networks,
            denied=settings.own_endpoints,
        ),
        sandbox=sandbox,
        segment=segment,
        settings=settings,
        known_images=KnownImages(store if settings.embedding_store else None),
        later=LaterWrites(),
    )
    sandbox.warm_up()
    return bench


def main(make_workbench: Callable[[WorkerSettings], Workbench] = make_workbench) -> None:
    """Run a node until it is told to stop.

    make_workbench: a module-level function; the child process finds it by name and calls it.
    """
    settings = WorkerSettings()
    configure_logs(settings.log_level, program="worker", worker=settings.node)
    check_at_start(settings)
    try:
        Ledger(connect(settings), settings.retention_s).undrain(settings.node)
    except QueueUnavailable as error:
        logger.warning("queue_unavailable", doing="start", **error.log_fields)  # Celery waits for Redis
    if settings.health_port:
        serve_health(settings, shown_figures(settings))
    app = celery_app(settings)
    app.conf.update(
        include=["maskfleet.worker.app"],
        worker_pool="prefork",
        worker_pool_start_method="spawn",
        worker_concurrency=1,
        worker_proc_alive_timeout=settings.load_timeout_s,
        task_time_limit=HARD_LIMIT_S,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        make_workbench=make_workbench,
    )
    # Celery's built-in tasks would let a message run any registered task.
    app.finalize()
    for name in [name for name in app.tasks if name != TASK_NAME]:
        app.tasks.unregister(name)
    drained = node_queues(settings.serves, outputs=settings.serve_outputs)
    queues = ",".join((*drained, canary_queue(settings.node)))
    # No events: nothing consumes them, and a worker may not publish to any channel.
    without = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    app.worker_main(["--quiet", "worker", "--queues", queues, "--hostname", settings.node, *without])
