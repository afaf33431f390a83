"""Each family's masks equal the library's: mode everything, points, boxes, one mask and three."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pycocotools import mask as coco_mask
from structlog.testing import capture_logs
from transformers import AutoProcessor, pipeline
from transformers.models.sam2 import image_processing_sam2
from transformers.utils import import_utils

from maskfleet.jobs.errors import AttemptFailed
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.embedding import frame_of, pixel_values
from maskfleet.worker.sam.families import Family
from maskfleet.worker.sam.families.sam import LibrarySam
from maskfleet.worker.sam.families.sam2 import LibrarySam2
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment
from tests.worker.checkpoints import save_tiny
from tests.worker.conftest import MAX_PIXELS, boxes, everything, points
from tests.worker.truth import OURS

#: The library's own modules run if a checkpoint's architecture is unknown.
THROUGH_LIBRARY: dict[str, type[Family]] = {"library_sam": LibrarySam, "library_sam2": LibrarySam2}
KINDS = ("sam", "library_sam", "sam_hq", "sam2", "library_sam2", "edgetam")
#: Those that sum in a different order than the library: a logit differs in its last digits, a pixel here and there.
FAST = ("sam", "sam2", "edgetam")
STRETCHED = ("sam2", "library_sam2", "edgetam")

ONE_POINT: dict[str, Any] = {"points": [[58, 53]]}
TWO_SIDES: dict[str, Any] = {"points": [[118, 55.5], [140, 60], [150, 120]], "labels": [1, 1, 0]}
BOX: dict[str, Any] = {"box": [90, 30, 141.5, 76]}
BOX_AND_POINTS: dict[str, Any] = {"box": [20, 30, 70, 78], "points": [[45, 50], [75, 75]], "labels": [1, 0]}
SHAPES = (ONE_POINT, TWO_SIDES, BOX, BOX_AND_POINTS)


@dataclass(frozen=True)
class Checkpoint:
    kind: str
    folder: str
    ours: SegmentationModel
    network: Any
    processor: Any

    def theirs(self, photo: Photo, prompt: dict[str, Any], **asked: Any) -> tuple[np.ndarray, Any]:
        """Return the library's full-size logits (C, H, W) for one prompt, and its model's whole output."""
        given: dict[str, Any] = {}
        if "points" in prompt:
            given["input_points"] = [[prompt["points"]]]
            given["input_labels"] = [[prompt.get("labels", [1] * len(prompt["points"]))]]
        if "box" in prompt:
            given["input_boxes"] = [[prompt["box"]]]
        inputs = self.processor(images=Image.fromarray(photo.pixels), return_tensors="pt", **given)
        sizes = [inputs.pop("original_sizes")]
        if self.kind not in STRETCHED:
            sizes.append(inputs.pop("reshaped_input_sizes"))
        with torch.no_grad():
            outputs = self.network(**inputs, **asked)
        return self.processor.post_process_masks(outputs.pred_masks, *sizes, binarize=False)[0][0].numpy(), outputs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A tiny checkpoint of a family, loaded by us and by the library."""
    made: dict[str, Checkpoint] = {}

    def of(kind: str) -> Checkpoint:
        if kind not in made:
            folder = save_tiny(kind.removeprefix("library_"), tmp_path_factory.mktemp(kind))
            ours = load_model(folder, "cpu")
            if kind in THROUGH_LIBRARY:
                family = THROUGH_LIBRARY[kind]
                ours = dataclasses.replace(ours, family=family(*family.read(folder)))
            # Where the bits are to be equal, both use one copy of the weights: with some instruction sets the last bits
            # of a product depend on where in memory the weights lie, so that the library loaded twice differs, too.
            network = getattr(transformers, ours.family.network_class).from_pretrained(folder).eval()
            network = network if kind in FAST else ours.family.network
            made[kind] = Checkpoint(kind, folder, ours, network, AutoProcessor.from_pretrained(folder))
        return made[kind]

    return of


@pytest.fixture(scope="module")
def wide(repository: Path) -> Photo:
    photo = decode_photo((repository / "examples" / "coins.png").read_bytes(), MAX_PIXELS)
    return Photo(np.ascontiguousarray(photo.pixels[:160, :210]), (210, 160), "PNG")


@pytest.fixture(scope="module")
def square(wide: Photo) -> Photo:
    return Photo(np.ascontiguousarray(wide.pixels[:150, 40:190]), (150, 150), "PNG")


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"pred_iou_thresh": 0.3, "stability_score_thresh": 0.02}, id="thresholds"),
        pytest.param(
            {
                "pred_iou_thresh": 0.0,
                "stability_score_thresh": 0.0,
                "mask_threshold": 4.0,
                "crops_nms_thresh": 0.9,
                "points_per_batch": 10,
            },
            id="no thresholds",
        ),
        pytest.param(
            {
                "pred_iou_thresh": 0.2,
                "stability_score_thresh": 0.0,
                "mask_threshold": 0.7,
                "crops_n_layers": 1,
                "points_per_crop": 3,
                "crops_nms_thresh": 1.0,
            },
            id="crops",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_mode_everything_gives_the_pipelines_masks(
    checkpoint: Callable[[str], Checkpoint], square: Photo, kind: str, params: dict[str, Any]
) -> None:
    model = checkpoint(kind)
    params = {"points_per_crop": 5, "crops_nms_thresh": 1.0, **params}

    ours = segment(square, everything(**params, crops_suppression="library"), model.ours).masks

    _assert_pipelines(ours, _pipeline(model, square, params), kind)
    # Random masks extend over the whole image, so suppression may leave only one.
    assert len(ours) > (1 if params["crops_nms_thresh"] == 1 else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_everything_on_a_wide_photo(
    checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers lays SAM 2's grid out as if the image kept its aspect ratio, so it ends before the image does.  The
    # original generator stretches it with the image, and so do we: the library is corrected here before comparing.
    if kind in STRETCHED:
        monkeypatch.setattr(image_processing_sam2, "_normalize_coordinates", _stretched)
    model = checkpoint(kind)
    params = {"points_per_crop": 5, "pred_iou_thresh": 0.25, "stability_score_thresh": 0.0, "crops_nms_thresh": 1.0}

    ours = segment(wide, everything(**params), model.ours).masks

    _assert_pipelines(ours, _pipeline(model, wide, params), kind)
    assert len(ours) > 1


def test_the_librarys_grid_of_sam_2_ends_before_a_wide_image_does(checkpoint: Callable[[str], Checkpoint]) -> None:
    processor = checkpoint("sam2").processor.image_processor

    _, grid, _, _ = processor.generate_crop_boxes(Image.new("RGB", (400, 100)), 128, points_per_crop=10)

    assert grid[..., 0].max() > 0.9 * 128
    assert grid[..., 1].max() < 0.25 * 128  # once this fails, the test above needs no correction


@pytest.mark.parametrize("prompt", SHAPES, ids=["one point", "points on and off", "a box", "a box with points"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_gives_the_librarys_three_candidates(
    checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str, prompt: dict[str, Any]
) -> None:
    model = checkpoint(kind)
    theirs, outputs = model.theirs(wide, prompt)

    ours = segment(wide, _job(prompt, multimask=True), model.ours).masks

    _assert_same(ours, outputs.iou_scores[0, 0].tolist(), list(theirs), kind)
    assert 0 < np.mean(theirs > 0) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_mask_is_the_best_of_three_or_the_networks_own_choice(
    checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str
) -> None:
    model = checkpoint(kind)

    for prompt in SHAPES:
        ours = segment(wide, _job(prompt), model.ours).masks

        theirs, outputs = model.theirs(wide, prompt, multimask_output=kind not in STRETCHED)
        scores = outputs.iou_scores[0, 0].tolist()
        best = int(np.argmax(scores))
        _assert_same(ours, [scores[best]], [theirs[best]], kind)
        assert ours[0].candidate is None


@pytest.mark.parametrize("kind", STRETCHED)
def test_the_object_score_is_the_librarys(checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str) -> None:
    model = checkpoint(kind)
    seen: list[Candidates] = []
    _, outputs = model.theirs(wide, BOX)

    segment(wide, boxes(BOX, BOX), _listening(model.ours, seen))

    assert seen[0].object_score is not None
    assert seen[0].object_score.tolist() == pytest.approx([float(outputs.object_score_logits)] * 2, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_different_shapes_are_each_as_alone(
    checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str
) -> None:
    model = checkpoint(kind).ours
    objects = [BOX_AND_POINTS, BOX, {"box": [120, 60, 200, 150]}, BOX_AND_POINTS]

    together = segment(wide, boxes(*objects, multimask=True, points_per_batch=2), model).masks

    alone = [mask for prompt in objects for mask in segment(wide, boxes(prompt, multimask=True), model).masks]
    assert [(mask.prompt, mask.candidate) for mask in together] == [(n, c) for n in range(4) for c in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)
        assert (decode_mask(one) ^ decode_mask(other)).sum() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_only_promising_candidates_are_made_into_masks(
    checkpoint: Callable[[str], Checkpoint], square: Photo, kind: str
) -> None:
    seen: list[Candidates] = []
    made: list[int] = []
    model = _listening(checkpoint(kind).ours, seen, made)

    done = segment(square, everything(points_per_crop=4, pred_iou_thresh=0.3, stability_score_thresh=0.0), model)

    promising = sum(int((candidates.predicted_iou > 0.3).sum()) for candidates in seen)
    assert sum(made) == promising == done.metrics.candidates
    assert 0 < promising < 48


@pytest.mark.parametrize("size_wh", [(384, 303), (128, 128), (50, 20), (1, 1), (3, 700), (1300, 900)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_models_input_is_the_image_processors(
    checkpoint: Callable[[str], Checkpoint], kind: str, size_wh: tuple[int, int]
) -> None:
    model = checkpoint(kind)
    pixels = np.random.default_rng(5).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    theirs = model.processor.image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    preprocessing = model.ours.family.preprocessing

    ours = pixel_values(pixels, frame_of((size_wh[1], size_wh[0]), preprocessing), preprocessing)

    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 900), (900, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_odd_images_are_segmented(checkpoint: Callable[[str], Checkpoint], kind: str, size_wh: tuple[int, int]) -> None:
    photo = Photo(np.full((size_wh[1], size_wh[0], 3), 90, dtype=np.uint8), size_wh, "PNG")

    done = segment(photo, boxes({"box": [0, 0, *size_wh], "points": [[0, 0]]}), checkpoint(kind).ours)

    assert [mask.size_hw for mask in done.masks] == [(size_wh[1], size_wh[0])]


@pytest.mark.parametrize("kind", FAST)
def test_a_decoder_that_is_built_otherwise_goes_through_the_library_and_the_log_says_why(
    checkpoint: Callable[[str], Checkpoint], wide: Photo, kind: str
) -> None:
    model = checkpoint(kind).ours
    network = copy.deepcopy(model.family.network)
    layers = network.mask_decoder.transformer.layers
    layers.append(copy.deepcopy(layers[1]))

    with capture_logs() as logged:
        family = type(model.family)(network, model.family.preprocessing)
    found = segment(wide, boxes(BOX, BOX_AND_POINTS), dataclasses.replace(model, family=family)).masks

    assert [(line["event"], line["reason"]) for line in logged] == [
        ("decoding_slowly", "its decoder has 3 layers instead of 2")
    ]
    slow = THROUGH_LIBRARY["library_sam" if kind == "sam" else "library_sam2"](network, family.preprocessing)
    expected = segment(wide, boxes(BOX, BOX_AND_POINTS), dataclasses.replace(model, family=slow)).masks
    assert found == expected


@pytest.mark.parametrize(("kind", "video"), [("sam2", "sam2_video"), ("edgetam", "edgetam_video")])
def test_a_checkpoint_for_videos_segments_images_as_its_image_model_does(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, wide: Photo, kind: str, video: str
) -> None:
    # The published checkpoints of SAM 2.1 and EdgeTAM are of this type.
    image_model = checkpoint(kind)
    for file in Path(image_model.folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": video}))
    numbers = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(numbers))

    found = segment(wide, boxes(BOX), load_model(str(tmp_path), "cpu")).masks

    assert found == segment(wide, boxes(BOX), image_model.ours).masks


def test_edgetam_without_timm_is_refused_by_the_packages_name(
    checkpoint: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("edgetam").folder
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", (lambda: False, import_utils.TIMM_IMPORT_ERROR))

    with pytest.raises(AttemptFailed) as refused:
        load_model(folder, "cpu")

    assert refused.value.code == "model_not_supported"
    assert "timm" in refused.value.detail


def test_a_processor_that_says_nothing_is_read_with_the_librarys_defaults() -> None:
    from maskfleet.worker.sam.families import FAMILIES

    theirs = transformers.Sam2ImageProcessor()

    ours = FAMILIES["sam2"].read_preprocessing({})

    assert ours.input_hw == (theirs.size["height"], theirs.size["width"])
    assert (ours.mean, ours.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.rescale_factor == theirs.rescale_factor


def _job(prompt: dict[str, Any], **params: Any) -> Any:
    return (boxes if "box" in prompt else points)(prompt, **params)


def _listening(model: SegmentationModel, seen: list[Candidates], made: list[int] | None = None) -> SegmentationModel:
    """Return the same model, recording what it decodes and how many masks are made."""
    family: Any = model.family

    class Listening(type(family)):  # type: ignore[misc]
        def decode(self, *args: Any, **kwargs: Any) -> Candidates:
            candidates = super().decode(*args, **kwargs)

            def logits(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
                if made is not None:
                    made.append(len(rows))
                return candidates.logits(rows, columns)

            seen.append(candidates)
            return Candidates(candidates.predicted_iou, logits, candidates.object_score)

    listening = copy.copy(family)
    listening.__class__ = Listening
    return dataclasses.replace(model, family=listening)


def _stretched(target: int, coords: torch.Tensor, size_hw: tuple[int, int], is_bounding_box: bool = False) -> Any:
    return coords.float() * torch.tensor([target / size_hw[1], target / size_hw[0]])


def _pipeline(model: Checkpoint, photo: Photo, params: dict[str, Any]) -> Any:
    generate = pipeline("mask-generation", model=model.network, image_processor=model.processor.image_processor)
    return generate(
        Image.fromarray(photo.pixels),
        output_rle_mask=True,
        output_bboxes_mask=True,
        **everything(**params).params.model_dump(exclude=OURS),
    )


def _assert_pipelines(ours: tuple[Mask, ...], theirs: Any, kind: str) -> None:
    pixels = [coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])) > 0 for rle in theirs["rle_mask"]]
    _assert_same(ours, theirs["scores"].tolist(), pixels, kind)
    boxes = [(x, y, x + max(w - 1, 0), y + max(h - 1, 0)) for x, y, w, h in (mask.bbox_xywh for mask in ours)]
    assert np.allclose(boxes, theirs["bounding_boxes"], atol=1 if kind in FAST else 0)


def _assert_same(ours: tuple[Mask, ...], scores: list[float], theirs: list[np.ndarray], kind: str) -> None:
    """Assert equal order, scores and pixels; on a fast path to 1e-5 and 5 pixels, of logits within 1e-3 of the cut-off.

    theirs: masks, or the logits that are thresholded at 0.
    """
    assert [mask.predicted_iou for mask in ours] == pytest.approx(scores, abs=1e-5 if kind in FAST else 0, rel=0)
    for mask, expected in zip(ours, theirs, strict=True):
        different = decode_mask(mask) ^ (expected > 0)
        assert different.sum() <= (5 if kind in FAST else 0)
        assert expected.dtype == np.bool_ or np.abs(expected[different]).max(initial=0) <= 1e-3
