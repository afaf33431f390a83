"""Outputs that are made later, of what a job wrote: the same bytes as if it had been asked for them at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import redis

from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.manifest import CANDIDATES_FILE, Manifest
from maskfleet.jobs.schema.record import EmbeddingOrigin, JobRecord
from maskfleet.jobs.schema.spec import EverythingParams, ExportRequest, Output, RefilterRequest, dump_spec, read_spec
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, manifest_key, result_prefix
from maskfleet.worker.attempt import Workbench, attempt_next
from tests.conftest import PHOTOS_BUCKET
from tests.worker.test_georeference import SCALE, TIE, UTM_33, geotiff

#: All that can be made later, in another order than their own.
LATER = [output for output in reversed(Output) if output is not Output.LOGITS]
#: Files that say how long their own job took.
TIMED = {"coco.json", "coco_polygons.json"}
POINTS = {"mode": "point", "prompts": [{"points": [[50, 50]]}, {"points": [[335, 44], [335.5, 40]]}]}
PANELS = {"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}], "params": {"multimask": True}}
GRID = {"mode": "everything", "params": {"points_per_crop": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}}


def run(bench: Workbench, spec_json: str, queue: str) -> JobRecord:
    jobs = NewJobs(tenant="ant", queue=queue, specs_json=(spec_json,), start_deadline_s=60)
    job_id = bench.ledger.create(jobs, max_in_flight=100, idempotency_ttl_s=60).id
    assert attempt_next(bench, rung_in=queue)
    record = bench.ledger.read(job_id)
    assert record is not None
    return record


def segment(bench: Workbench, photo: bytes, spec: dict[str, Any], outputs: list[str], **fields: object) -> Manifest:
    image = fields.pop("image", None) or {
        "upload_id": bench.store.put_upload("ant", photo, "image/png"),
        "file_name": "coins.png",
    }
    record = run(bench, json.dumps({**spec, "image": image, "outputs": outputs, **fields}), "sam.sam-demo.normal")
    return written(bench, record)


def export(bench: Workbench, earlier: Manifest, *outputs: str, **fields: Any) -> JobRecord:
    assert earlier.origin.spec is not None
    assert earlier.image is not None
    image = read_spec(json.dumps(earlier.origin.spec)).image.model_copy(update={"sha256": earlier.image.sha256})
    job = ExportRequest(outputs=outputs, **fields).job(earlier.job_id, image, earlier.model)
    return run(bench, dump_spec(job), "sam.outputs.normal")


def written(bench: Workbench, record: JobRecord) -> Manifest:
    assert record.error is None
    return Manifest.model_validate_json(bench.store.read(manifest_key("ant", record.id)))


def objects(bench: Workbench, manifest: Manifest) -> dict[str, bytes]:
    return {file.name: bench.store.read(file.key) for file in manifest.files}


@pytest.mark.parametrize(
    ("spec", "each_kept"),
    [(POINTS, [["coco"], ["masks_zip"], []]), (PANELS, [["png"]]), (GRID, [["coco"], ["masks_zip"]])],
    ids=["points", "panels", "grid"],
)
def test_what_is_exported_is_what_the_job_would_have_written(
    bench: Workbench, coins: bytes, spec: dict[str, Any], each_kept: list[list[str]]
) -> None:
    at_once = segment(bench, coins, spec, LATER)
    expected = objects(bench, at_once)
    assert len(at_once.masks) > 1
    for kept in each_kept:
        earlier = segment(bench, coins, spec, kept, inline=None if kept else "rle")

        later = written(bench, export(bench, earlier, *LATER, inline="polygons"))

        found = objects(bench, later)
        assert list(found) == list(expected)
        assert {name for name in expected if found[name] != expected[name]} <= TIMED
        if kept == ["coco"]:  # as it stands there
            assert found["coco.json"] == objects(bench, earlier)["coco.json"]
        for name in TIMED:
            coco, original = (json.loads(files[name])["annotations"] for files in (found, expected))
            if spec is GRID and kept != ["coco"]:  # its points are nowhere else
                for one in original:
                    one["point_coords"] = []
            assert coco == original
        assert later.masks == at_once.masks
        assert (later.mode, later.file_name, later.image) == ("export", "coins.png", at_once.image)
        assert later.origin.job_id == earlier.job_id
        assert later.inline is not None
        assert later.metrics.embedding is EmbeddingOrigin.NONE


def test_what_is_exported_of_a_geotiff_is_on_the_map_too(bench: Workbench) -> None:
    photo = geotiff(np.full((60, 80, 3), 90, np.uint8), t33550=SCALE, t33922=TIE, t34735=UTM_33)
    spec = {"mode": "point", "prompts": [{"points": [[30, 30]]}]}
    at_once = segment(bench, photo, spec, ["geojson", "label_map"])
    earlier = segment(bench, photo, spec, ["coco"])

    later = written(bench, export(bench, earlier, "geojson", "label_map"))

    assert later.georeference == at_once.georeference
    assert objects(bench, later) == objects(bench, at_once)
    assert objects(bench, later).keys() == {"outlines.geojson", "label_map.png", "label_map.tif"}


def test_an_export_can_be_exported(bench: Workbench, coins: bytes) -> None:
    job = segment(bench, coins, PANELS, ["coco", "overlay"])
    export_of_it = written(bench, export(bench, job, "masks_zip"))

    again = written(bench, export(bench, export_of_it, "overlay"))

    assert objects(bench, again)["overlay.png"] == objects(bench, job)["overlay.png"]
    assert again.origin == job.origin


@pytest.mark.parametrize(("now", "code"), [(b"\0", "image_changed"), (None, "image_not_found")])
def test_only_an_overlay_needs_the_image(
    bench: Workbench, coins: bytes, store_fields: dict[str, str], now: bytes | None, code: str
) -> None:
    photos = Store(SharedSettings(**{**store_fields, "bucket": PHOTOS_BUCKET}))
    photos.put("coins.png", coins, "image/png")
    job = segment(bench, coins, POINTS, ["coco"], image={"s3_uri": f"s3://{PHOTOS_BUCKET}/coins.png"})
    if now is None:
        photos.delete(["coins.png"])
    else:
        photos.put("coins.png", coins + now, "image/png")

    overlay, drawing = export(bench, job, "svg", "overlay"), export(bench, job, "svg")

    assert overlay.error is not None
    assert (overlay.error.code, overlay.attempt) == (code, 1)
    assert objects(bench, written(bench, drawing)).keys() == {"outlines.svg"}


@pytest.mark.parametrize("gone", ["the file", "all"])
def test_a_result_that_is_gone_fails_the_export_at_once(bench: Workbench, coins: bytes, gone: str) -> None:
    job = segment(bench, coins, POINTS, ["coco"])
    if gone == "all":
        bench.store.delete_prefix(f"{result_prefix('ant', job.job_id)}/")
    else:
        bench.store.delete([job.files[0].key])

    record = export(bench, job, "svg")

    assert (record.attempt, record.error.code if record.error else "") == (1, "result_not_found")


def test_another_tenants_masks_are_not_read_though_a_manifest_names_them(bench: Workbench, coins: bytes) -> None:
    job = segment(bench, coins, POINTS, ["coco"])
    foreign = job.files[0].model_copy(update={"key": "results/bee/job_1/attempt-1/coco.json"})
    forged = job.model_copy(update={"files": (foreign,)})
    bench.store.put(foreign.key, bench.store.read(job.files[0].key), "application/json")
    bench.store.put(manifest_key("ant", job.job_id), forged.model_dump_json().encode(), "application/json")

    record = export(bench, job, "svg")

    assert record.error is not None
    assert record.error.code == "result_not_found"


def test_of_one_class_the_models_jobs_are_first_and_the_other_is_rung_for_again(
    bench: Workbench, coins: bytes, redis_client: redis.Redis
) -> None:
    job = segment(bench, coins, POINTS, ["coco"])
    waiting = NewJobs("ant", "sam.sam-demo.normal", (json.dumps(job.origin.spec),), 60)
    bench.ledger.create(waiting, max_in_flight=100, idempotency_ttl_s=60)

    record = export(bench, job, "svg")  # at its bell, the other is done
    rung = redis_client.llen("sam.outputs.normal")
    assert attempt_next(bench, rung_in="sam.outputs.normal")

    assert (record.status, rung) == (Status.QUEUED, 1)
    after = bench.ledger.read(record.id)
    assert after is not None
    assert after.status is Status.SUCCEEDED


def test_masks_that_are_polygons_alone_are_not_kept(bench: Workbench, coins: bytes) -> None:
    job = segment(bench, coins, POINTS, ["svg"], inline="polygons")

    record = export(bench, job, "geojson")

    assert record.error is not None
    assert record.error.code == "masks_not_kept"
    assert not job.keeps_masks


def test_an_image_of_another_size_is_another_image(bench: Workbench, coins: bytes) -> None:
    job = segment(bench, coins, POINTS, ["coco"])
    larger = job.model_copy(update={"image_width": 385})
    bench.store.put(manifest_key("ant", job.job_id), larger.model_dump_json().encode(), "application/json")

    record = export(bench, job, "overlay")

    assert record.error is not None
    assert record.error.code == "image_changed"


@pytest.mark.parametrize("params", [{"pred_iou_thresh": 0.85, "min_mask_area": 9}, {"crops_nms_thresh": 0.2}], ids=str)
def test_candidates_filtered_again_are_written_as_a_full_run_writes_its_masks(
    bench: Workbench, coins: bytes, params: dict[str, Any]
) -> None:
    keeping = {**GRID, "params": {**GRID["params"], "keep_candidates": True}}
    job = segment(bench, coins, keeping, ["svg"])
    full = segment(bench, coins, {**GRID, "params": {**GRID["params"], **params}}, LATER)
    image = read_spec(json.dumps(job.spec)).image.model_copy(update={"sha256": job.image.sha256 if job.image else None})
    own = EverythingParams.model_validate(keeping["params"])
    asked = RefilterRequest.model_validate({"params": params, "outputs": LATER, "inline": "rle"})

    later = written(bench, run(bench, dump_spec(asked.job(job.job_id, image, job.model, own)), "sam.outputs.normal"))

    found, expected = objects(bench, later), objects(bench, full)
    assert list(found) == list(expected)
    assert {name for name in expected if found[name] != expected[name]} == {"coco.json", "coco_polygons.json"}
    annotations = [json.loads(files["coco.json"])["annotations"] for files in (found, expected)]
    assert annotations[0] == annotations[1]
    assert 0 < len(later.masks) != len(job.masks)
    assert (later.masks, later.origin.job_id) == (full.masks, job.job_id)
    assert later.spec is not None
    assert later.spec["params"]["crops_nms_thresh"] == params.get("crops_nms_thresh", 0.7)


def test_candidates_that_are_gone_fail_the_job_at_once(bench: Workbench, coins: bytes) -> None:
    job = segment(bench, coins, {**GRID, "params": {**GRID["params"], "keep_candidates": True}}, ["svg"])
    bench.store.delete([file.key for file in job.files if file.name == CANDIDATES_FILE])
    image = read_spec(json.dumps(job.spec)).image
    asked = RefilterRequest().job(job.job_id, image, job.model, EverythingParams(keep_candidates=True))

    record = run(bench, dump_spec(asked), "sam.outputs.normal")

    assert (record.attempt, record.error.code if record.error else "") == (1, "result_not_found")
