"""A mask's logits are written as a file and used as a prompt's mask_input, in the library's format."""

from __future__ import annotations

import dataclasses
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor

from maskfleet.jobs.errors import InvalidPrompt, InvalidRequest, NodeFault
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.prompts import MaskInput, Prompt
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.status import Status
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.masks.mask import decode_mask
from maskfleet.worker.output.formats import make_artifacts, write_logits
from maskfleet.worker.sam.mask_input import MAX_FILE_BYTES, read_logits
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment
from maskfleet.worker.segment_step import segment_and_format
from maskfleet.worker.sources import fetch_mask_inputs
from tests.conftest import PHOTOS_BUCKET
from tests.worker.checkpoints import LOW, save_tiny
from tests.worker.conftest import MAX_PIXELS, boxes, points

NETWORKS = {"sam": "SamModel", "sam_hq": "SamHQModel", "sam2": "Sam2Model", "edgetam": "EdgeTamModel"}
NAMED = {"mask_input": {"upload_id": "upl_" + "0" * 32}}
BOX: dict[str, Any] = {"box": [90, 30, 141.5, 76], **NAMED}
BOX_AND_POINT: dict[str, Any] = {"box": [20, 30, 70, 78], "points": [[45, 50]], **NAMED}
POINT: dict[str, Any] = {"points": [[58, 53]], **NAMED}


@pytest.fixture(scope="module")
def wide(repository: Path) -> Photo:
    return decode_photo((repository / "examples" / "coins.png").read_bytes(), MAX_PIXELS)


@pytest.fixture(scope="module")
def earlier() -> list[np.ndarray]:
    random = np.random.default_rng(4)
    return [(random.normal(0, 4, (LOW, LOW))).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_mask_input_refines_as_in_the_library(
    kind: str, tmp_path: Path, wide: Photo, earlier: list[np.ndarray]
) -> None:
    folder = save_tiny(kind, tmp_path)
    network: Any = getattr(transformers, NETWORKS[kind]).from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    model = load_model(folder, "cpu")

    for prompt in (POINT, BOX, BOX_AND_POINT):
        job = (boxes if "box" in prompt else points)(prompt, multimask=True)
        ours = segment(wide, job, model, mask_inputs={0: earlier[0]}).masks

        given = {"input_boxes": [[prompt["box"]]]} if "box" in prompt else {}
        if "points" in prompt:
            given |= {"input_points": [[prompt["points"]]], "input_labels": [[[1]]]}
        inputs = processor(images=Image.fromarray(wide.pixels), return_tensors="pt", **given)
        sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        with torch.no_grad():
            outputs = network(**inputs, input_masks=torch.from_numpy(earlier[0])[None, None])
        theirs = processor.post_process_masks(outputs.pred_masks, *sizes)[0][0].numpy()
        # A fast path sums in a different order; SAM-HQ has none.
        score, pixels = (0, 0) if kind == "sam_hq" else (1e-5, 5)
        assert [mask.predicted_iou for mask in ours] == pytest.approx(
            outputs.iou_scores[0, 0].tolist(), abs=score, rel=0
        )
        assert max((decode_mask(mask) ^ their).sum() for mask, their in zip(ours, theirs, strict=True)) <= pixels
        without = segment(wide, (boxes if "box" in prompt else points)(_bare(prompt), multimask=True), model).masks
        assert [mask.counts for mask in ours] != [mask.counts for mask in without]


@pytest.mark.parametrize("kind", NETWORKS)
def test_prompts_with_masks_and_without_are_each_as_alone(
    kind: str, tmp_path: Path, wide: Photo, earlier: list[np.ndarray]
) -> None:
    model = load_model(save_tiny(kind, tmp_path), "cpu")
    prompts = [BOX, _bare(BOX), BOX_AND_POINT, BOX]
    masked = {0: earlier[0], 2: earlier[1], 3: earlier[2]}

    together = segment(wide, boxes(*prompts), model, mask_inputs=masked).masks

    for index, (prompt, mask) in enumerate(zip(prompts, together, strict=True)):
        own = {0: masked[index]} if index in masked else {}
        (alone,) = segment(wide, boxes(prompt), model, mask_inputs=own).masks
        assert mask.predicted_iou == pytest.approx(alone.predicted_iou, abs=1e-4)
        assert (decode_mask(mask) ^ decode_mask(alone)).sum() <= 2


def test_logits_that_a_job_gives_out_are_those_of_its_masks(model: SegmentationModel, wide: Photo) -> None:
    spec = boxes(_bare(BOX), _bare(BOX_AND_POINT), outputs=("logits",))

    found = segment(wide, spec, model)
    artifacts = list(make_artifacts(wide, spec, found))

    assert [artifact.name for artifact in artifacts] == ["logits/0000.npy", "logits/0001.npy"]
    for artifact, mask in zip(artifacts, found.masks, strict=True):
        logits = read_logits(artifact.data, 0)
        assert logits.shape == model.family.low_hw
        assert logits.dtype == np.float32
        # The same fraction of the coarse mask and of the fine one, excluding padding.
        height = round(logits.shape[0] * wide.size_wh[1] / wide.size_wh[0])
        assert (logits[:height] > 0).mean() == pytest.approx(decode_mask(mask).mean(), abs=0.01)


def test_masks_keep_no_logits_unless_they_are_asked_for(model: SegmentationModel, wide: Photo) -> None:
    assert segment(wide, boxes(_bare(BOX)), model).masks[0].logits is None


def test_a_mask_of_another_size_than_the_models_is_refused(model: SegmentationModel, wide: Photo) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        segment(wide, boxes(_bare(BOX), BOX), model, mask_inputs={1: np.zeros((256, 256), np.float32)})

    assert refused.value.code == "invalid_mask_input"
    assert "Prompt 1" in refused.value.detail
    assert "256×256; this model takes 96×96" in refused.value.detail


def test_a_mask_that_is_named_and_not_there_is_refused(model: SegmentationModel, wide: Photo) -> None:
    with pytest.raises(InvalidPrompt, match="was not passed"):
        segment(wide, boxes(BOX), model)


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_of_logits_are_read_as_they_were_written(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    logits = np.asarray(np.random.default_rng(0).normal(size=shape).astype(dtype), order=order)

    read = read_logits(write_logits(logits), 3)

    assert np.array_equal(read, logits.reshape(5, 6))
    assert read.flags.writeable


def _npy(values: np.ndarray, **fields: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **fields)
    return buffer.getvalue()


def _declaring(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(b"", "not an .npy file", id="nothing"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), "not an .npy file", id="a picture"),
        pytest.param(b"\x93NUMPY\x01\x00\xff\xff", "not an .npy file", id="a header that breaks off"),
        pytest.param(b"\x93NUMPY\x09\x00" + bytes(60), "not an .npy file", id="another version"),
        pytest.param(_npy(np.array([{}], dtype=object), allow_pickle=True), "holds object", id="a pickle"),
        pytest.param(_npy(np.zeros((4, 4))), "holds float64", id="float64"),
        pytest.param(_npy(np.zeros((4, 4), dtype=">f4")), "holds >f4", id="big-endian"),
        pytest.param(_npy(np.zeros((2, 4, 4), dtype="f4")), "has 3 dimensions", id="two masks"),
        pytest.param(_npy(np.zeros(16, dtype="f4")), "has 1 dimensions", id="a row"),
        pytest.param(_npy(np.full((4, 4), np.nan, dtype="f4")), "holds NaN or infinite values", id="no numbers"),
        pytest.param(
            _npy(np.zeros((4, 4), dtype="f4"))[:-4], "number of bytes that its header declares", id="too short"
        ),
        pytest.param(_declaring("(100000, 100000)"), "number of bytes that its header declares", id="a huge shape"),
        pytest.param(_declaring("(-1, -4)"), "number of bytes that its header declares", id="sides under zero"),
    ],
)
def test_what_is_no_file_of_logits_is_refused(data: bytes, fault: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        read_logits(data, 7)

    assert refused.value.code == "invalid_mask_input"
    assert refused.value.detail.startswith("Prompt 7: ")
    assert fault in refused.value.detail


def test_a_second_job_refines_a_mask_of_the_first(bench: Workbench, repository: Path, tmp_path: Path) -> None:
    model = load_model(save_tiny("sam", tmp_path), "cpu")  # the demo checkpoint ignores masks
    bench = dataclasses.replace(bench, segment=partial(segment_and_format, model))
    photo = (repository / "examples" / "coins.png").read_bytes()
    first = _run(bench, photo, "ant", [_bare(BOX), _bare(BOX_AND_POINT)], outputs=["logits", "coco"])
    again = {**BOX, "mask_input": {"job_id": first.id, "mask": 1}}

    second = _run(bench, photo, "ant", [again], outputs=["logits"])

    assert second.status is Status.SUCCEEDED
    start, written = _written(bench, first, "logits/0001.npy"), _written(bench, second, "logits/0000.npy")
    coins = decode_photo(photo, MAX_PIXELS)
    without = segment(coins, boxes(_bare(BOX), outputs=("logits",)), model).masks[0].logits
    assert without is not None
    refined = segment(coins, boxes(BOX, outputs=("logits",)), model, mask_inputs={0: start}).masks[0].logits
    assert refined is not None
    assert np.allclose(written, refined, atol=1e-3)
    assert not np.allclose(written, without, atol=0.1)


def test_another_tenants_masks_are_not_found(bench: Workbench, repository: Path) -> None:
    photo = (repository / "examples" / "coins.png").read_bytes()
    first = _run(bench, photo, "ant", [_bare(BOX)], outputs=["logits"])

    second = _run(bench, photo, "bee", [{**BOX, "mask_input": {"job_id": first.id, "mask": 0}}])

    assert (second.status, second.error and second.error.code) == (Status.FAILED, "mask_input_not_found")


def test_masks_are_fetched_from_uploads_and_from_buckets(bench: Workbench) -> None:
    logits = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float16)
    upload_id = bench.store.put_upload("ant", write_logits(logits), "application/octet-stream")
    bench.store._s3.put_object(Bucket=PHOTOS_BUCKET, Key="masks/one.npy", Body=write_logits(2 * logits))
    prompts = _masked({"upload_id": upload_id}, None, {"s3_uri": f"s3://{PHOTOS_BUCKET}/masks/one.npy"})

    fetched = fetch_mask_inputs(prompts, "ant", bench.store, bench.settings)

    assert list(fetched) == [0, 2]
    assert np.array_equal(fetched[0], logits)
    assert np.array_equal(fetched[2], 2 * logits)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"s3_uri": f"s3://{PHOTOS_BUCKET}/no-such.npy"}, "mask_input_not_found"),
        ({"job_id": "job_" + "1" * 32, "mask": 0}, "mask_input_not_found"),
        ({"s3_uri": "s3://elsewhere/mask.npy"}, "bucket_not_allowed"),
    ],
)
def test_masks_that_cannot_be_had_are_refused(bench: Workbench, source: dict[str, Any], code: str) -> None:
    with pytest.raises((InvalidPrompt, InvalidRequest)) as refused:
        fetch_mask_inputs(_masked(None, source), "ant", bench.store, bench.settings)

    assert refused.value.code == code


def test_an_uploaded_mask_that_is_gone_is_looked_for_by_another_node_first(bench: Workbench) -> None:
    with pytest.raises(NodeFault) as fault:
        fetch_mask_inputs(_masked(None, {"upload_id": "upl_" + "1" * 32}), "ant", bench.store, bench.settings)

    assert isinstance(fault.value.verdict, InvalidPrompt)
    assert fault.value.verdict.code == "mask_input_not_found"


def test_a_mask_that_the_job_did_not_write_is_not_found(bench: Workbench, repository: Path) -> None:
    photo = (repository / "examples" / "coins.png").read_bytes()
    job = _run(bench, photo, "ant", [_bare(BOX)])

    with pytest.raises(InvalidPrompt, match="wrote logits for 0 masks") as refused:
        fetch_mask_inputs(_masked({"job_id": job.id, "mask": 0}), "ant", bench.store, bench.settings)

    assert refused.value.code == "mask_input_not_found"


def test_no_more_of_a_file_is_read_than_a_mask_can_hold(bench: Workbench) -> None:
    too_long = write_logits(np.zeros((2048, 2048), np.float32))
    assert len(too_long) > MAX_FILE_BYTES
    prompts = _masked({"upload_id": bench.store.put_upload("ant", too_long, "application/octet-stream")})

    with pytest.raises(InvalidPrompt, match="number of bytes that its header declares"):
        fetch_mask_inputs(prompts, "ant", bench.store, bench.settings)


def _bare(prompt: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prompt.items() if name != "mask_input"}


def _masked(*sources: dict[str, Any] | None) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(box=(0, 0, 9, 9), mask_input=None if source is None else MaskInput(**source)) for source in sources
    )


def _run(bench: Workbench, photo: bytes, tenant: str, prompts: list[dict[str, Any]], **fields: Any) -> JobRecord:
    image = {"upload_id": bench.store.put_upload(tenant, photo, "image/png")}
    spec = json.dumps({"mode": "box", "prompts": prompts, "image": image, **fields})
    job = NewJobs(tenant=tenant, queue="sam.sam-demo.normal", specs_json=(spec,), start_deadline_s=60)
    job_id = bench.ledger.create(job, max_in_flight=100, idempotency_ttl_s=60).id
    attempt_next(bench)
    record = bench.ledger.read(job_id)
    assert record is not None
    return record


def _written(bench: Workbench, job: JobRecord, name: str) -> np.ndarray:
    """Return a file of logits written by a job."""
    assert job.result is not None
    manifest = Manifest.model_validate_json(bench.store.read(job.result.manifest_key))
    [key] = [file.key for file in manifest.files if file.key.endswith(name)]
    return read_logits(bench.store.read(key), 0)
