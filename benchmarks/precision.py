"""Measure how far masks are from float32's if the encoder computes in half precision, or is compiled.

    python -m benchmarks.precision
    python -m benchmarks.precision --device cuda --compile

For each family: a job of 36 points with all three candidates, compared mask by mask, and mode everything, in which
masks pass the filters or not, compared as sets.  ``sam`` is the bundled checkpoint with its trained weights, on
photographs.  Of the other families there are no trained weights to bundle: they have the published shape (ViT-B, hiera
tiny, RepViT M1) and seeded random weights, whose masks are noise.  Noise has an outline nearly everywhere, so these
figures are far worse than those of trained weights, and tell families and precisions apart, no more.

The reference is the encoder in float32, uncompiled, on the CPU.  On another device its own float32 is compared as well.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.machine import ROOT, keep
from maskfleet.jobs.schema.spec import EverythingJob, ImageSource, PointJob
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.masks.mask import Mask, decode_mask
from maskfleet.worker.sam.compiled import Compile
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment import segment

FAMILIES = ("sam", "sam_hq", "sam2", "edgetam")
HALVES = ("bfloat16", "float16")
DEMO = ROOT / "models" / "sam-demo"
PHOTOS = ("coins.png", "coffee.jpg")
SOMEWHERE = ImageSource(s3_uri="s3://bench/any.png")
#: Points along each side of the job whose masks are compared one by one.
GRID = 6
#: The least IoU of two masks that are taken for the same, in mode everything.
SAME = 0.5
#: The share of random candidates that pass the IoU filter, as with trained weights.
PASSING = 1 / 8
#: Random masks are never stable, and their boxes all cover the image: both filters let them pass.
OF_NOISE: dict[str, Any] = {"points_per_crop": GRID, "stability_score_thresh": 0.0, "crops_nms_thresh": 1.0}
#: The bundled model's scores are low on photographs.
OF_PHOTOS: dict[str, Any] = {"points_per_crop": 16, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}

Pixels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Variant:
    """How an encoder computes."""

    device: str
    precision: str = "float32"
    compile_as: Compile = "off"

    @property
    def name(self) -> str:
        compiled = "" if self.compile_as == "off" else f", {self.compile_as}"
        return f"{self.precision} on {self.device}{compiled}"


def iou(one: Pixels, other: Pixels) -> float:
    """Return the intersection over the union; 1 for two empty masks."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def match(ones: Sequence[Pixels], others: Sequence[Pixels]) -> list[float]:
    """Pair masks of two sets, those that overlap most first.  Returns the pairs' IoUs, all above ``SAME``."""
    ious = np.array([[iou(one, other) for other in others] for one in ones]).reshape(len(ones), len(others))
    pairs = []
    while ious.size and (best := float(ious.max())) > SAME:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        ious[row], ious[:, column] = 0, 0
        pairs.append(best)
    return pairs


def summary(ious: Iterable[float]) -> dict[str, float]:
    values = list(ious)
    if not values:
        return {"masks": 0}
    return {"masks": len(values), "mean_iou": round(float(np.mean(values)), 5), "min_iou": round(min(values), 5)}


def together(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the comparisons of several images."""
    prompts = [value for one in compared for value in one["prompts"]]
    pairs = [value for one in compared for value in one["pairs"]]
    reference, found = (sum(one[key] for one in compared) for key in ("reference", "found"))
    return {
        "prompts": summary(prompts),
        "everything": {
            "reference": reference,
            "found": found,
            "share_in_both": round(len(pairs) / max(1, reference + found - len(pairs)), 4),
            **summary(pairs),
        },
    }


def point_job(photo: Photo) -> PointJob:
    """Return a job with a grid of points and all three candidates of each."""
    steps = [(number + 0.5) / GRID for number in range(GRID)]
    width, height = photo.size_wh
    prompts = [{"points": [(x * width, y * height)]} for y, x in itertools.product(steps, steps)]
    return PointJob(mode="point", image=SOMEWHERE, prompts=prompts, params={"multimask": True})


def pixels_of(masks: Iterable[Mask]) -> list[Pixels]:
    return [decode_mask(mask) for mask in masks]


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's masks in float32.  params: of its job in mode everything."""

    photo: Photo
    prompts: list[Pixels]
    everything: list[Pixels]
    params: dict[str, Any]

    @classmethod
    def of(cls, model: SegmentationModel, photo: Photo, params: dict[str, Any]) -> Reference:
        prompts = segment(photo, point_job(photo), model).masks
        if "pred_iou_thresh" not in params:
            threshold = float(np.quantile([mask.predicted_iou for mask in prompts], 1 - PASSING))
            params = {**params, "pred_iou_thresh": min(max(threshold, 0.0), 1.0)}
        everything = segment(photo, EverythingJob(mode="everything", image=SOMEWHERE, params=params), model).masks
        return cls(photo, pixels_of(prompts), pixels_of(everything), params)

    def compare(self, model: SegmentationModel) -> dict[str, Any]:
        prompts = pixels_of(segment(self.photo, point_job(self.photo), model).masks)
        job = EverythingJob(mode="everything", image=SOMEWHERE, params=self.params)
        everything = pixels_of(segment(self.photo, job, model).masks)
        return {
            "prompts": [iou(one, other) for one, other in zip(self.prompts, prompts, strict=True)],
            "pairs": match(self.everything, everything),
            "reference": len(self.everything),
            "found": len(everything),
        }


def photos(names: Iterable[str], longest: int) -> Iterator[Photo]:
    for name in names:
        image = Image.open(ROOT / "examples" / name).convert("RGB")
        image.thumbnail((longest, longest))
        yield Photo(np.array(image), image.size, "PNG")


def measure(family: str, variants: Sequence[Variant]) -> dict[str, Any]:
    """Compare a family's variants with its reference."""
    from tests.worker.checkpoints import save_published

    with tempfile.TemporaryDirectory() as folder:
        trained = family == "sam"
        checkpoint = str(DEMO) if trained else save_published(family, Path(folder))
        params, names = (OF_PHOTOS, PHOTOS) if trained else (OF_NOISE, PHOTOS[:1])
        exact = load_model(checkpoint, "cpu")
        references = [Reference.of(exact, photo, params) for photo in photos(names, 512)]
        del exact
        row: dict[str, Any] = {
            "family": family,
            "weights": "sam-demo, trained" if trained else "random, published shape",
            "input_side": int(load_model(checkpoint, "cpu").family.preprocessing.input_hw[0]),
            "images": list(names),
        }
        for variant in variants:
            started = time.monotonic()
            model = load_model(checkpoint, variant.device, variant.precision, compile_as=variant.compile_as)
            row[variant.name] = together([reference.compare(model) for reference in references])
            print(family, variant.name, row[variant.name], f"{time.monotonic() - started:.0f} s", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--compile", nargs="*", choices=get_args(Compile)[1:], help="compiled variants, too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    variants = [] if options.device == "cpu" else [Variant(options.device)]
    variants += [Variant(options.device, half) for half in HALVES]
    for compile_as in get_args(Compile)[1:2] if options.compile == [] else options.compile or ():
        variants += [Variant(options.device, precision, compile_as) for precision in ("float32", "bfloat16")]
    rows = [measure(family, variants) for family in options.families]
    command = " ".join(["python -m benchmarks.precision", *sys.argv[1:]])
    if options.device == "cpu":
        keep("precision", command, rows)
    else:
        named = {"gpu": torch.cuda.get_device_name(options.device), "rows": rows}
        keep(f"precision_{options.device}", command, named)


if __name__ == "__main__":
    main()
