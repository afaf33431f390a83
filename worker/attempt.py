"""One attempt at a job, from the claim to its outcome."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import requests
from structlog.contextvars import bound_contextvars

from maskfleet.jobs.errors import (
    AttemptFailed,
    JobError,
    NodeFault,
    QueueUnavailable,
    SourceUnreachable,
    StoreMisconfigured,
)
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Reply
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.messages import Bells
from maskfleet.jobs.queue import is_of_outputs, model_queues, node_queues, served_by
from maskfleet.jobs.schema.image import ImageFacts
from maskfleet.jobs.schema.record import JobRecord, ResultSummary
from maskfleet.jobs.schema.spec import DerivedJob, EmbedJob
from maskfleet.jobs.schema.wire import utc_time
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.status import Stage
from maskfleet.jobs.storage import Store
from maskfleet.jobs.tracing import Kind, current, span
from maskfleet.worker.earlier_result import earlier_result
from maskfleet.worker.embeddings.job_image import ImageReader, JobImage
from maskfleet.worker.embeddings.known_images import KnownImages
from maskfleet.worker.embeddings.later import LaterWrites
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.lease import Canceled, Drained, Fenced, Lease, LeaseRanOut, kill_this_process
from maskfleet.worker.node.device import is_lost_device, is_out_of_memory
from maskfleet.worker.node.figures import figures
from maskfleet.worker.node.names import device_of, host_of
from maskfleet.worker.output.artifacts import SegmentStep
from maskfleet.worker.results import write_result
from maskfleet.worker.retry import GiveUp, Patience, TryAgain, decide
from maskfleet.worker.sources import fetch_mask_inputs
from maskfleet.worker.stages import StageName, stage, timed

logger = get_logger()

#: Errors of the operating system that say something of the machine, not of a job: a full or broken disk, too many open
#: files.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
#: How long to retry recording a job's outcome while Redis is unavailable; a worker has nothing else to do then.
FINISH_PATIENCE_S = 900.0
#: For so long a job that this node handed back for its own fault is left to the other nodes, once it is due again.
AVOID_S = 30.0
#: Jobs of these modes are not called to the node that has the image, or leave no image there.
_IMAGE_NOT_HELD = {"everything", "export", "refilter"}
#: For so long after a job it is called to others of the same image, which it keeps in memory as far as there is room.
IMAGE_HELD_S = 600.0


@dataclass(frozen=True, slots=True)
class Workbench:
    """What a worker process holds between jobs.

    segment: holds the model, and is the only part that needs torch.  test_model: raises ModelWrong; None for a stand-in
    that has none.
    """

    ledger: Ledger
    worker_registry: WorkerRegistry
    bells: Bells
    store: Store
    egress: requests.Session
    sandbox: Sandbox
    segment: SegmentStep
    settings: WorkerSettings
    known_images: KnownImages
    later: LaterWrites
    test_model: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What an attempt came to.  keep: see Segmented."""

    result: ResultSummary
    keep: Callable[[], None] | None = None


def attempt_next(
    bench: Workbench, note: Callable[[JobError | None], None] = lambda _: None, *, rung_in: str = ""
) -> bool:
    """Claim the next job, run it and record the outcome; return False if there is none.

    note: is told what went wrong, or None after a success.  rung_in: the queue whose bell was heard.
    """
    settings, ledger = bench.settings, bench.ledger
    # Bells are heard in the order of the queues: at one of the model's, no job that needs none is more urgent.
    outputs = settings.serve_outputs and is_of_outputs(rung_in)
    queues = node_queues(settings.serves, outputs=True) if outputs else model_queues(settings.serves)
    claim = ledger.claim_next(queues, settings.node, lease_s=settings.lease_s, max_attempts=settings.max_attempts)
    if claim.more:
        _ring(bench, claim.more_in, claim.more)
    record = claim.record
    if outputs and record is not None and not is_of_outputs(record.queue):
        _ring(bench, rung_in)  # what it was rung for may wait still
    if record is None:
        logger.info("bell_dropped")
        return False
    with bound_contextvars(**record.log_ids), _observed(record, settings):
        try:
            logger.info("job_claimed", mode=record.spec.mode)
            with Lease(ledger, record, settings) as lease:
                done = _do(record, bench, lease)
            result = done.result
            origin = result.metrics.embedding
            held_s = 0.0 if record.spec.mode in _IMAGE_NOT_HELD else IMAGE_HELD_S
            succeed = partial(ledger.succeed, record, result, image_held_s=held_s)
            _end(succeed, "job_succeeded", masks=result.masks, embedding=origin)
            if done.keep is not None:
                bench.later.do(done.keep)
            note(None)
            figures().segmented(record.spec, result.metrics)
        except Canceled:
            _end(partial(ledger.finish_canceled, record), "job_canceled")
        except Drained:
            _end(partial(ledger.release, record, delay_s=0, charged=False, outcome="drained"), "job_drained")
            _ring(bench, record.queue)
        except Fenced:
            _end(ledger.note_fenced, "job_fenced")
        except LeaseRanOut:
            # Redis was away for longer than the lease; if the job is still ours, it goes back uncharged.
            _give_back_or_fail(QueueUnavailable(), record, bench)
        except JobError as error:
            _give_back_or_fail(error, record, bench)
            note(error)
        except Exception as error:  # the outermost handler: whatever breaks, the job must not hang
            logger.exception("attempt_broke")
            broke = _what_broke(error)
            _give_back_or_fail(broke, record, bench)
            note(broke)
            if is_lost_device(error):
                logger.error("device_lost")
                kill_this_process()  # every further call on the device would fail, too
    return True


@contextmanager
def _observed(record: JobRecord, settings: WorkerSettings) -> Iterator[None]:
    """Make the attempt's span, and that of the wait before it, and count how long its stages took."""
    attributes: dict[str, str | int] = {
        "maskfleet.job_id": record.id,
        "maskfleet.attempt": record.attempt,
        "maskfleet.mode": record.summary.mode,
        "maskfleet.model": record.summary.model or settings.model_name,
        "maskfleet.node": settings.node,
        "maskfleet.request_id": record.request_id,
    }
    wait_ms = max(0, (record.claimed_ms or 0) - record.waited_since_ms) if record.waited_since_ms else None
    if record.traceparent and wait_ms is not None:
        # As long as it was by Redis' clock, placed by this machine's.
        began_ms = int(time.time() * 1000) - wait_ms
        span("queue", {"maskfleet.queue": record.queue}, of=record.traceparent, began_ms=began_ms).end()
    with span("attempt", attributes, kind=Kind.CONSUMER, of=record.traceparent), timed() as timings:
        try:
            yield
        finally:
            figures().attempted(None if wait_ms is None else wait_ms / 1000, timings)


def _ring(bench: Workbench, queue: str, jobs: int = 1) -> None:
    try:
        bench.bells.ring(queue, jobs)
    except QueueUnavailable:
        logger.warning("bell_left_to_courier", queue=queue)


def _do(record: JobRecord, bench: Workbench, lease: Lease) -> Done:
    if record.bucket not in ("", bench.store.bucket):
        raise StoreMisconfigured("a worker has another bucket than the API.")
    if record.fence > 1 and (done := earlier_result(record, bench.store)):
        return Done(done)
    if isinstance(record.spec, DerivedJob):
        return Done(_export(record, record.spec, bench, lease))
    photo = _image_of(record, bench, lease)
    started = time.monotonic()
    mask_inputs = fetch_mask_inputs(record.spec.prompts, record.tenant, bench.store, bench.settings)
    masks_s = time.monotonic() - started
    segmented = bench.segment(photo, record.spec, lease, mask_inputs)
    lease.stage(Stage.WRITING)
    model = bench.settings.model_name
    fetch_s = photo.fetch_s + masks_s
    keep = None
    if segmented.keep is not None:  # without the photo: its pixels must not wait for a slow store
        keep = partial(_keep, segmented.keep, bench.known_images, record.tenant, photo.facts_by_name)
        if isinstance(record.spec, EmbedJob):  # what is kept is all that it is for
            bench.later.now(keep)
            keep = None
    at_once = bench.settings.uploads_at_once
    result = write_result(
        record, photo, segmented, bench.store, lease, model=model, fetch_s=fetch_s, uploads_at_once=at_once
    )
    return Done(result, keep)


def _image_of(record: JobRecord, bench: Workbench, lease: Lease) -> JobImage:
    reader = ImageReader(
        record.spec.image, record.tenant, bench.store, bench.egress, bench.sandbox, bench.settings, lease.check
    )
    return JobImage(reader, bench.known_images)


def _export(record: JobRecord, spec: DerivedJob, bench: Workbench, lease: Lease) -> ResultSummary:
    """Write an earlier job's masks in further formats, or others of its candidates."""
    from maskfleet.worker.export import EarlierResult, export  # for few jobs

    started = time.monotonic()
    with stage(StageName.FETCH):
        earlier = EarlierResult.find(spec.from_job, record.tenant, bench.store, lease.check)
        segmented, image = export(spec, earlier, partial(_image_of, record, bench, lease))
    fetch_s = time.monotonic() - started
    lease.stage(Stage.WRITING)
    return write_result(
        record,
        image,
        segmented,
        bench.store,
        lease,
        model=earlier.manifest.model,
        fetch_s=fetch_s,
        uploads_at_once=bench.settings.uploads_at_once,
        segmented_by=earlier.manifest.origin,
    )


def _keep(
    keep_embedding: Callable[[], None], known: KnownImages, tenant: str, facts_by_name: Mapping[str, ImageFacts]
) -> None:
    """Write what later jobs on an image may use: first its embedding, then the facts that lead there."""
    keep_embedding()
    for name, facts in facts_by_name.items():
        known.write(tenant, name, facts)


def _what_broke(error: Exception) -> JobError:
    if is_lost_device(error):
        return NodeFault("device_lost", "The worker lost its device, such as its GPU.")
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return NodeFault("machine_broken", f"The worker's machine failed: {error.strerror}.")
    if is_out_of_memory(error):
        detail = "The worker ran out of memory, even decoding one point at a time. Send a smaller image."
        return AttemptFailed("out_of_memory", detail)
    return AttemptFailed("internal_error", f"The attempt failed with an internal error: {type(error).__name__}.")


def _give_back_or_fail(error: JobError, record: JobRecord, bench: Workbench) -> None:
    """Queue the job again after a delay, or mark it as failed."""
    ledger = bench.ledger
    patience = Patience(bench.settings.max_attempts, bench.settings.outage_patience_s)
    agreed = isinstance(error, NodeFault) and _another_node_met(error.code, record, ledger)
    alone = isinstance(error, NodeFault) and _is_alone(bench, served_by(record.queue, bench.settings.serves))
    # Unlike a node's other faults it is as likely the host's: once nobody does better, it has the usual attempts.
    judged = error.verdict if isinstance(error, SourceUnreachable) and (agreed or alone) else error
    jitter = random.random()  # noqa: S311 (spreads retries; no secret)
    match decide(judged, record.attempt, record.tried_for_s, patience, jitter, agreed=agreed):
        case TryAgain(delay_s, charged):
            avoid_s = AVOID_S if isinstance(judged, NodeFault) and not alone else 0.0
            back = partial(
                ledger.release, record, delay_s=delay_s, charged=charged, outcome=error.code, avoid_s=avoid_s
            )
            _end(back, "job_released", code=error.code, charged=charged)
        case GiveUp(code, detail):
            _end(partial(ledger.fail, record, code, detail), "job_failed", code=code)


def _another_node_met(code: str, record: JobRecord, ledger: Ledger) -> bool:
    """Return whether another device's node handed this job back for the same reason since it was created or retried."""
    try:
        attempts = ledger.attempts(record.id)
    except QueueUnavailable:
        return False
    since, ours = utc_time(record.started_ms or 0), device_of(record.worker or "")
    return any(one.outcome == code and device_of(one.worker) != ours and one.started_at >= since for one in attempts)


def _is_alone(bench: Workbench, served: str) -> bool:
    """Return whether no other device's node takes jobs of this model, or of what stands for one."""
    node, registry = bench.settings.node, bench.worker_registry
    try:
        serving = registry.serving(served)  # itself, too, once it has announced itself
        if serving > 1 and device_of(node) != node:
            beside = [seen for seen in registry.workers(host_of(node)) if device_of(seen.node) == device_of(node)]
            return serving <= sum(not seen.fault for seen in beside)
    except QueueUnavailable:
        return False
    return serving <= 1


def _end(transition: Callable[[], Reply], event: str, **fields: object) -> None:
    """Record the outcome in the ledger, retrying so that a restart of Redis does not lose the work."""
    deadline = time.monotonic() + FINISH_PATIENCE_S
    while True:
        try:
            reply = transition()
            break
        except QueueUnavailable:
            if time.monotonic() > deadline:
                logger.error("end_not_recorded", event_lost=event)
                return
            time.sleep(0.5)
    figures().ended(event, reply)
    current().note({"maskfleet.outcome": event if reply is Reply.OK else f"{event}: {reply}"})
    if reply is Reply.OK and "code" in fields:
        current().fail(str(fields["code"]))
    if reply is Reply.OK:
        logger.info(event, **fields)
    elif reply is Reply.CANCELED:  # it was to be handed back
        logger.info("job_canceled")
    else:
        logger.warning("job_fenced", event_lost=event)
