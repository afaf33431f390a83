"""Compare with transformers, end to end, on any SAM checkpoint: kept set, order, scores, boxes and every pixel.

    python -m tests.worker.truth models/sam-demo --megapixels 0.3 1 4 12 18
    python -m tests.worker.truth path/to/a/checkpoint --megapixels 1 4 --points 8 --pred-iou 0.62 --stability 0.9
    python -m tests.worker.truth models/sam-demo --megapixels 18 --of-four

Our decoder sums in a different order than the library's, which changes the last digits of logits.  So a few pixels may
differ where the library's own logit, at full size, is within ``NEAR`` of the threshold; that logit is printed for
each.  So does the library's own: ``--of-four`` shows how many pixels differ between its masks of a prompt alone, with
which ours are compared, and of the same prompt in a batch of four.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # the library's models and processors ship no types

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import SamModel, SamProcessor, pipeline

from maskfleet.jobs.schema.spec import BoxJob, EverythingJob, ImageSource, PointJob
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment

#: The maximum number of pixels that may differ in a mask.
MOST_PIXELS = 5
#: How far the library's logits at these pixels may be from the threshold.
NEAR = 1e-3
SCORE_TOLERANCE = 1e-5
#: The parameters of mode everything that the library's pipeline does not have.
OURS = {
    "crops_suppression",
    "min_mask_area",
    "keep_candidates",
    "keep_pred_iou_thresh",
    "keep_stability_score_thresh",
}

_SOMEWHERE = ImageSource(s3_uri="s3://photos/any.png")
_COINS = Path(__file__).parents[2] / "examples" / "coins.png"


@dataclass(frozen=True)
class Comparison:
    """The result of running both, for each mask.

    near: the library's |logit - threshold| where a pixel differs.
    """

    near: tuple[npt.NDArray[np.float32], ...]

    def check(self, name: str) -> None:
        """Print every pixel that differs; assert that there are masks, few such pixels, and all near the threshold."""
        pixels = [float(distance) for distances in self.near for distance in distances]
        worst = max(map(len, self.near), default=0)
        shown = " ".join(f"{distance:.1e}" for distance in pixels)
        print(f"{name}: {len(self.near)} masks, {len(pixels)} pixels differ, {worst} in one {shown}")  # noqa: T201
        assert self.near, f"{name}: there are no masks to compare"
        assert worst <= MOST_PIXELS
        assert max(pixels, default=0) <= NEAR


class Truth:
    """One checkpoint, loaded by us and by the library."""

    def __init__(self, folder: str | Path) -> None:
        self._ours: SegmentationModel = load_model(str(folder), "cpu")
        self._network: Any = SamModel.from_pretrained(folder).eval()
        self._processor: Any = SamProcessor.from_pretrained(folder)

    def everything(self, image: Image.Image, **params: Any) -> Comparison:
        """Compare mode everything with the pipeline; asserts kept set, order, scores and boxes."""
        job = EverythingJob(mode="everything", image=_SOMEWHERE, params={"crops_suppression": "library", **params})
        generate = pipeline("mask-generation", model=self._network, image_processor=self._processor.image_processor)
        theirs = generate(
            image,
            output_rle_mask=True,
            output_bboxes_mask=True,
            **job.params.model_dump(exclude=OURS),
        )

        ours = segment(_photo(image), job, self._ours).masks

        _assert_scores(ours, theirs["scores"].tolist())
        near = []
        for mask, rle, box in zip(ours, theirs["rle_mask"], theirs["bounding_boxes"].tolist(), strict=True):
            pixels = coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])) > 0
            different = decode_mask(mask) ^ pixels
            near.append(self._distances(image, mask, different, job.params.mask_threshold))
            if not different.any():
                assert _first_and_last_pixel(mask) == box
        return Comparison(tuple(near))

    def prompt(self, image: Image.Image, prompt: dict[str, Any]) -> dict[str, Comparison]:
        """Compare a prompt's three candidates, and the best of them, with the model's and its processor's."""
        logits, scores = self._logits(image, prompt)
        best = int(np.argmax(scores))
        inside = logits > 0
        boxes_xywh = [_box_xywh(pixels) for pixels in inside]
        compared = {}
        for name, chosen in {"three masks": range(3), "one mask": (best,)}.items():
            ours = segment(_photo(image), _job(prompt, multimask=len(chosen) == 3), self._ours).masks

            _assert_scores(ours, [scores[candidate] for candidate in chosen])
            near = []
            for mask, candidate in zip(ours, chosen, strict=True):
                different = decode_mask(mask) ^ inside[candidate]
                near.append(np.abs(logits[candidate][different]))
                if not different.any():
                    assert mask.bbox_xywh == boxes_xywh[candidate]
            compared[name] = Comparison(tuple(near))
        return compared

    def of_four(self, image: Image.Image, prompt: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Return in how many pixels masks differ from the library's three in a batch of four: ours, and its own.

        Its own are those of the prompt alone.
        """
        alone, together = (self._logits(image, prompt, batch)[0] > 0 for batch in (1, 4))
        job = PointJob(mode="point", image=_SOMEWHERE, prompts=(prompt,), params={"multimask": True})
        ours = np.stack([decode_mask(mask) for mask in segment(_photo(image), job, self._ours).masks])
        in_ours, in_its_own = ([int(count) for count in (masks ^ together).sum((1, 2))] for masks in (ours, alone))
        return in_ours, in_its_own

    def _distances(
        self, image: Image.Image, mask: Mask, different: npt.NDArray[np.bool_], threshold: float
    ) -> npt.NDArray[np.float32]:
        """Return how far from the threshold the library's logits are where a grid point's mask differs."""
        if not different.any():
            return np.zeros(0, dtype=np.float32)
        logits, scores = self._logits(image, {"points": [list(mask.point_coords[0])]})
        candidate = int(np.argmin(np.abs(np.array(scores) - mask.predicted_iou)))
        distances: npt.NDArray[np.float32] = np.abs(logits[candidate][different] - threshold)
        return distances

    def _logits(
        self, image: Image.Image, prompt: dict[str, Any], batch: int = 1
    ) -> tuple[npt.NDArray[np.float32], list[float]]:
        """Return the library's full-size logits (3, H, W) and scores for one prompt, in a batch of that many copies."""
        given: dict[str, Any] = {}
        if "points" in prompt:
            given["input_points"] = [[prompt["points"]] * batch]
            given["input_labels"] = [[prompt.get("labels", [1] * len(prompt["points"]))] * batch]
        if "box" in prompt:
            given["input_boxes"] = [[prompt["box"]] * batch]
        inputs = self._processor(images=image.convert("RGB"), return_tensors="pt", **given)
        with torch.inference_mode():
            outputs = self._network(**inputs)
        full = self._processor.post_process_masks(
            outputs.pred_masks[:, :1], inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
        )
        return full[0][0].numpy(), outputs.iou_scores[0, 0].tolist()


def coins(size_wh: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return the example photograph, stretched to a size."""
    return Image.open(_COINS).convert(mode).resize(size_wh, Image.Resampling.BICUBIC)


def of_megapixels(megapixels: float) -> tuple[int, int]:
    """Return width and height at an aspect ratio of 4 : 3."""
    height = (megapixels * 1e6 * 3 / 4) ** 0.5
    return round(height * 4 / 3), round(height)


def prompts_on(size_wh: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Return a prompt of every shape, at fractions of the image."""
    width, height = size_wh

    def at(x: float, y: float) -> list[float]:
        return [x * width, y * height]

    return {
        "a point": {"points": [at(0.15, 0.17)]},
        "points": {"points": [at(0.31, 0.18), at(0.37, 0.2), at(0.4, 0.4)], "labels": [1, 1, 0]},
        "a box": {"box": [*at(0.23, 0.1), *at(0.37, 0.25)]},
        "a box and points": {
            "box": [*at(0.05, 0.1), *at(0.18, 0.26)],
            "points": [at(0.12, 0.17), at(0.2, 0.25)],
            "labels": [1, 0],
        },
    }


def _job(prompt: dict[str, Any], *, multimask: bool) -> PointJob | BoxJob:
    job: dict[str, Any] = {"image": _SOMEWHERE, "prompts": (prompt,), "params": {"multimask": multimask}}
    return BoxJob(mode="box", **job) if "box" in prompt else PointJob(mode="point", **job)


def _photo(image: Image.Image) -> Photo:
    return Photo(np.ascontiguousarray(np.asarray(image.convert("RGB"))), image.size, "PNG")


def _assert_scores(ours: Sequence[Mask], scores: Sequence[float]) -> None:
    assert len(ours) == len(scores)
    assert np.allclose([mask.predicted_iou for mask in ours], scores, atol=SCORE_TOLERANCE, rtol=0)


def _first_and_last_pixel(mask: Mask) -> list[float]:
    x, y, width, height = mask.bbox_xywh
    return [x, y, x + max(width - 1, 0), y + max(height - 1, 0)]


def _box_xywh(inside: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.3, 1])
    parser.add_argument("--points", type=int, default=6, help="along a side, in mode everything")
    parser.add_argument("--batch", type=int, default=4, help="the library holds 12 bytes a pixel and point of a batch")
    parser.add_argument("--pred-iou", type=float, default=0.75)
    parser.add_argument("--stability", type=float, default=0.8)
    parser.add_argument("--of-four", action="store_true", help="ours, and a prompt alone, against a batch of four")
    options = parser.parse_args()
    truth = Truth(options.checkpoint)
    for megapixels in options.megapixels:
        image = coins(of_megapixels(megapixels))
        if options.of_four:
            steps = [(number + 0.5) / options.points for number in range(options.points)]
            for x, y in itertools.product(steps, steps):
                point = [x * image.width, y * image.height]
                in_ours, in_its_own = truth.of_four(image, {"points": [point]})
                print(f"{megapixels} MP, {point}: ours {in_ours}, the library's own {in_its_own}")  # noqa: T201
            continue
        truth.everything(
            image,
            points_per_crop=options.points,
            points_per_batch=options.batch,
            pred_iou_thresh=options.pred_iou,
            stability_score_thresh=options.stability,
        ).check(f"{megapixels} MP, everything")
        for name, prompt in prompts_on(image.size).items():
            for masks, compared in truth.prompt(image, prompt).items():
                compared.check(f"{megapixels} MP, {name}, {masks}")


if __name__ == "__main__":
    main()
