"""Masks that stand in the job's own JSON: in the manifest, exact, and no larger than they may be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.inline import MAX_INLINE_BYTES, InlineMasks, Rle, WhyNotInline
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.schema.spec import Inline
from maskfleet.jobs.storage import result_prefix
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.output.inline import masks_inline
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics

POINTS = {"mode": "point", "prompts": [{"points": [[50, 50]]}, {"points": [[335, 44]]}]}


def run(bench: Workbench, data: bytes, **fields: object) -> tuple[Manifest, dict[str, bytes]]:
    """Run a job; return its manifest, and all objects that it wrote, by name."""
    spec = json.dumps({**POINTS, "image": {"upload_id": bench.store.put_upload("ant", data, "image/png")}, **fields})
    jobs = NewJobs(tenant="ant", queue="sam.sam-demo.normal", specs_json=(spec,), start_deadline_s=60)
    job_id = bench.ledger.create(jobs, max_in_flight=100, idempotency_ttl_s=60).id
    assert attempt_next(bench)
    record = bench.ledger.read(job_id)
    assert record is not None
    assert record.result is not None, record.error
    keys = [found.key for found in bench.store.listed(f"{result_prefix('ant', job_id)}/")]
    objects = {key.rpartition("/")[2]: bench.store.read(key) for key in keys}
    return Manifest.model_validate_json(bench.store.read(record.result.manifest_key)), objects


NO_WORK = SegmentMetrics(0.0, 0.0, 0, 0, 64, 0, 1, 0, decoded_again_exactly=True, embedding=EmbeddingOrigin.COMPUTED)


def pixels_of(shape: object, size_hw: tuple[int, int]) -> np.ndarray:
    if isinstance(shape, Rle):
        return coco_mask.decode(shape.model_dump()).astype(bool)
    assert isinstance(shape, tuple)
    polygons = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in shape], *size_hw)
    return coco_mask.decode(coco_mask.merge(polygons)).astype(bool)


@pytest.mark.parametrize("form", ["rle", "polygons"])
@pytest.mark.parametrize("multimask", [False, True])
def test_masks_are_in_the_manifest_alone_and_equal_those_of_coco_json(
    bench: Workbench, coins: bytes, form: str, multimask: bool
) -> None:
    params = {"params": {"multimask": multimask}}
    manifest, objects = run(bench, coins, inline=form, outputs=[], **params)
    plain, written = run(bench, coins, **params)

    assert (objects.keys(), manifest.files, plain.inline) == ({"manifest.json"}, (), None)
    assert manifest.inline is not None
    assert manifest.inline_omitted is None
    assert (manifest.inline.form, manifest.inline.image_width, manifest.inline.image_height) == (form, 384, 303)
    records = json.loads(written["coco.json"])["annotations"]
    assert len(records) == len(manifest.inline.masks) == (6 if multimask else 2)
    for inline, summary, record in zip(manifest.inline.masks, manifest.masks, records, strict=True):
        named = ("area", "predicted_iou", "stability_score")
        assert [getattr(inline, name) for name in named] == [record[name] for name in named]
        assert (list(inline.bbox), inline.prompt, inline.candidate) == (
            record["bbox"],
            record["prompt"],
            record.get("candidate"),
        )
        assert (inline.area, inline.bbox) == (summary.area, summary.bbox)
        expected = coco_mask.decode(record["segmentation"]).astype(bool)
        assert np.array_equal(pixels_of(inline.segmentation, (303, 384)), expected)


def test_masks_come_inline_beside_files(bench: Workbench, coins: bytes) -> None:
    manifest, objects = run(bench, coins, inline="rle", outputs=["coco", "png"])

    assert manifest.inline is not None
    assert objects.keys() == {"manifest.json", "coco.json", "0000.png", "0001.png"}


def test_masks_that_are_too_large_are_in_coco_json_though_nobody_asked_for_that(bench: Workbench, coins: bytes) -> None:
    # Each of many prompts for the same object has polygons of its own.
    many = [{"points": [[x, y]]} for x in range(10, 380, 20) for y in range(10, 300, 20)]
    manifest, objects = run(
        bench, coins, prompts=many, params={"multimask": True}, inline="polygons", outputs=["label_map"]
    )

    assert manifest.inline is None
    assert manifest.inline_omitted is not None
    assert manifest.inline_omitted.code == "inline_too_large"
    assert f"{MAX_INLINE_BYTES:,}" in manifest.inline_omitted.detail
    assert objects.keys() == {"manifest.json", "coco.json", "label_map.png"}


@pytest.mark.parametrize("form", list(Inline))
def test_the_limit_is_that_of_their_json(form: Inline) -> None:
    mask = Mask("0`0Pb1", (48, 64), 48, (0, 0, 1, 48), 0.9, 0.95, ((1, 1),), (0, 0, 64, 48), 0, None)
    one = masks_inline(Segmentation((64, 48), (mask,), NO_WORK), form)
    assert isinstance(one, InlineMasks)
    fit = MAX_INLINE_BYTES // (len(one.masks[0].model_dump_json()) + 1)

    all_that_fit = masks_inline(Segmentation((64, 48), (mask,) * fit, NO_WORK), form)
    one_more = masks_inline(Segmentation((64, 48), (mask,) * (fit + 1), NO_WORK), form)

    assert isinstance(all_that_fit, InlineMasks)
    assert len(all_that_fit.masks) == fit
    assert isinstance(one_more, WhyNotInline)


def test_a_single_mask_may_be_too_large() -> None:
    mask = Mask("11" * MAX_INLINE_BYTES, (3000, 3000), 1, (0, 0, 1, 1), 0.9, 0.9, (), (0, 0, 3000, 3000), None, None)

    for form in Inline:
        found = masks_inline(Segmentation((3000, 3000), (mask,), NO_WORK), form)
        assert isinstance(found, WhyNotInline)


def test_a_job_without_masks_has_none_inline() -> None:
    found = masks_inline(Segmentation((64, 48), (), NO_WORK), Inline.RLE)

    assert isinstance(found, InlineMasks)
    assert found.masks == ()
    assert masks_inline(Segmentation((64, 48), (), NO_WORK), None) is None
