"""A device that runs out of memory: the job continues in smaller batches, noted in its manifest, or fails."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import redis
import torch

from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.status import Status
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.segment_step import segment_and_format
from tests.taking import pass_delays

SPEC = (
    '{"mode":"everything","image":{"upload_id":"%s"},"params":{"points_per_crop":4,"points_per_batch":16,'
    '"pred_iou_thresh":0.5,"stability_score_thresh":0.5}}'
)


def with_memory_for(bench: Workbench, model: SegmentationModel, points: int) -> Workbench:
    """Return the workbench, with a model that can decode only that many points at once."""
    family = copy.copy(model.family)

    class Short(type(family)):  # type: ignore[misc]
        def decode(self, embedding: object, prompts: PromptBatch, **asked: bool) -> Candidates:
            if len(prompts.indices) > points:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().decode(embedding, prompts, **asked)

    family.__class__ = Short
    short = dataclasses.replace(model, family=family)
    return dataclasses.replace(bench, segment=partial(segment_and_format, short))


@pytest.fixture
def job_id(bench: Workbench, coins: bytes) -> str:
    spec = SPEC % bench.store.put_upload("ant", coins, "image/png")
    job = NewJobs(tenant="ant", queue="sam.sam-demo.normal", specs_json=(spec,), start_deadline_s=60)
    return bench.ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id


@pytest.mark.parametrize(("points", "said"), [(16, 16), (5, 4), (1, 1)])
def test_the_manifest_says_how_many_points_were_decoded_at_once(
    bench: Workbench, model: SegmentationModel, job_id: str, points: int, said: int
) -> None:
    attempt_next(with_memory_for(bench, model, points))

    record = bench.ledger.read(job_id)
    assert record is not None
    assert record.result is not None
    manifest = Manifest.model_validate_json(bench.store.read(record.result.manifest_key))
    assert (record.status, manifest.metrics.points_per_batch, manifest.metrics.points) == (Status.SUCCEEDED, said, 16)


def test_a_job_that_no_memory_holds_fails_by_that_code(
    bench: Workbench, model: SegmentationModel, job_id: str, redis_client: redis.Redis
) -> None:
    for _ in range(bench.settings.max_attempts):
        attempt_next(with_memory_for(bench, model, 0))
        pass_delays(redis_client)

    record = bench.ledger.read(job_id)
    assert record is not None
    assert record.error is not None
    assert (record.status, record.error.code) == (Status.FAILED, "out_of_memory")
