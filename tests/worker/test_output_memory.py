"""The memory that each output takes while it is made, measured in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Bytes per pixel of the image: a label map's 16-bit labels, and an eighth for the bits of one mask.
LABELS, BITS = 2, 1 / 8
#: The overlay's canvas, at float32, and its masks' blur are of a screen's size; so is what is compressed at once.
PICTURE_BYTES, STRIPS_BYTES = 100 * 2**20, 8 * 2**20
#: The file, and the outline of one mask as Python's numbers.
OUTLINES_BYTES = 40 * 2**20


SIZES_WH = ((5184, 3456), (12247, 8165))


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, int], dict[str, float]]:
    """The peak of each output's memory in bytes, by the image's size."""
    command = [sys.executable, "-m", "tests.worker.output_memory", *(f"{width}x{height}" for width, height in SIZES_WH)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return dict(zip(SIZES_WH, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_outputs_take_no_byte_for_each_pixel_of_a_mask(
    measured: dict[tuple[int, int], dict[str, float]], size_wh: tuple[int, int]
) -> None:
    pixels, peaks = size_wh[0] * size_wh[1], measured[size_wh]

    assert peaks["png"] < 2 * BITS * pixels + STRIPS_BYTES
    assert peaks["masks_zip"] < 2 * BITS * pixels + STRIPS_BYTES
    assert peaks["label_map"] < (LABELS + 2 * BITS) * pixels + STRIPS_BYTES
    assert peaks["panoptic"] < (LABELS + 2 * BITS) * pixels + STRIPS_BYTES
    assert peaks["overlay"] < PICTURE_BYTES
    assert max(peaks[output] for output in ("geojson", "svg", "yolo", "coco")) < OUTLINES_BYTES
