"""Masks without full-size pixels equal, to the pixel, those that torch makes at full size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate

from maskfleet.worker.masks.measure import count_near, keep_logits_window, measure, trace
from maskfleet.worker.masks.resampling import BilinearMap, Rounding, one_step, torch_rounding, two_steps
from maskfleet.worker.masks.rle import decode_rle, encode_rle
from tests import references

#: (low_hw, padded_hw or None for one step, original_hw)
Shape = tuple[tuple[int, int], tuple[int, int] | None, tuple[int, int]]


def frame(original_hw: tuple[int, int], padded: int) -> tuple[int, int]:
    """Return the size that SAM scales an image to."""
    scale = padded / max(original_hw)
    return max(1, int(original_hw[0] * scale + 0.5)), max(1, int(original_hw[1] * scale + 0.5))


def bilinear_map_of(shape: Shape) -> BilinearMap:
    low_hw, padded_hw, original_hw = shape
    if padded_hw is None:
        return one_step(low_hw, original_hw)
    return two_steps(low_hw, padded_hw, frame(original_hw, max(padded_hw)), original_hw)


def full_size(logits: np.ndarray, shape: Shape) -> np.ndarray:
    """Return the library's result: the logits of every pixel."""
    _, padded_hw, original_hw = shape
    # One channel at a time: with one thread torch uses another kernel for three, which differs in the last bit.
    values = torch.from_numpy(logits)[:, None]
    if padded_hw is not None:
        height, width = frame(original_hw, max(padded_hw))
        values = interpolate(values, padded_hw, mode="bilinear", align_corners=False)[..., :height, :width]
    return interpolate(values, original_hw, mode="bilinear", align_corners=False)[:, 0].numpy()


def rough(count: int, low_hw: tuple[int, int], seed: int, coarse: int = 8) -> np.ndarray:
    """Return hills and noise: outlines of all kinds."""
    random = torch.Generator().manual_seed(seed)
    hills = torch.randn(1, count, low_hw[0] // coarse + 1, low_hw[1] // coarse + 1, generator=random) * 5
    noise = torch.randn(1, count, *low_hw, generator=random) * 0.6
    return (interpolate(hills, low_hw, mode="bilinear") + noise)[0].numpy()


def compressed(inside: np.ndarray) -> str:
    counts = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def assert_equal_to_full_size(
    logits: np.ndarray, shape: Shape, threshold: float = 0.0, offset: float = 1.0, threads: int = 1
) -> None:
    bilinear_map = bilinear_map_of(shape)
    prepared = bilinear_map.prepare(torch.from_numpy(logits))
    measures = measure(prepared, bilinear_map, threshold, offset, threads)
    for index, pixels in enumerate(full_size(logits, shape)):
        # torch compares float32 with a Python number in float32
        cuts = [np.float32(level) for level in (threshold - offset, threshold, threshold + offset)]
        inside = pixels > cuts[1]
        changes = trace(
            keep_logits_window(prepared[index], measures.windows[index], bilinear_map),
            bilinear_map,
            threshold,
            shape[2][0],
        )
        assert measures.areas[index].tolist() == [int((pixels > cut).sum()) for cut in cuts]
        assert measures.boxes_xyxy[index].tolist() == list(box_of(inside))
        assert encode_rle(changes, shape[2]) == compressed(inside)


def box_of(inside: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), original_hw=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_what_it_is_compared_with_is_two_bilinear_steps(seed: int, original_hw: tuple[int, int]) -> None:
    logits, shape = rough(1, (5, 5), seed, coarse=2), ((5, 5), (20, 20), original_hw)

    slow = references.upscaled(logits[0], (20, 20), frame(original_hw, 20), original_hw)

    measures = measure(bilinear_map_of(shape).prepare(torch.from_numpy(logits)), bilinear_map_of(shape), 0.0, 1.0)
    assert np.allclose(full_size(logits, shape)[0], slow, atol=1e-4)
    if np.abs(np.abs(slow) - [[[0]], [[1]]]).min() > 1e-4:  # nothing depends on rounding
        assert measures.areas[0, 2] / max(1, measures.areas[0, 0]) == references.stability(slow, 0.0, 1.0)
        assert measures.boxes_xyxy[0].tolist() == list(references.bounding_box(slow > 0) or (0, 0, 0, 0))


SIDES = st.integers(1, 260)
SHAPES: st.SearchStrategy[Shape] = st.one_of(
    st.tuples(st.just((16, 16)), st.just((64, 64)), st.tuples(SIDES, SIDES)),
    st.tuples(st.just((40, 40)), st.just((160, 160)), st.tuples(SIDES, SIDES)),
    st.tuples(st.just((12, 30)), st.none(), st.tuples(SIDES, SIDES)),
)


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    coarse=st.sampled_from([2, 4, 16, 100]),
    threshold=st.sampled_from([0.0, 0.7, -2.3, 5.0]) | st.floats(-6, 6),
    offset=st.sampled_from([1.0, 0.05, 4.0]) | st.floats(0.01, 8),
)
def test_areas_boxes_and_runs_are_those_of_the_full_size_logits(
    shape: Shape, seed: int, coarse: int, threshold: float, offset: float
) -> None:
    assert_equal_to_full_size(rough(2, shape[0], seed, coarse), shape, threshold, offset)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.0, 0.7]) | st.floats(-6, 6),
    distance=st.sampled_from([0.001, 0.1, 0.5]),
)
def test_pixels_near_the_threshold_are_those_of_the_full_size_logits(
    shape: Shape, seed: int, threshold: float, distance: float
) -> None:
    logits, bilinear_map = rough(1, shape[0], seed), bilinear_map_of(shape)
    prepared = bilinear_map.prepare(torch.from_numpy(logits))
    window = measure(prepared, bilinear_map, threshold, 1.0).windows[0]

    found = count_near(keep_logits_window(prepared[0], window, bilinear_map), bilinear_map, threshold, distance)

    [pixels] = full_size(logits, shape)
    low, high = np.float32(threshold - distance), np.float32(threshold + distance)
    assert found == int(((pixels > low) & ~(pixels > high)).sum())


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.1, -0.7, 3.3]), ulps=st.booleans())
def test_logits_on_a_cut_or_next_to_it_fall_on_torchs_side(
    shape: Shape, seed: int, threshold: float, ulps: bool
) -> None:
    # Mixing equal values does not always give that value: 0.3·x + 0.7·x may be x plus an ulp.
    cuts = np.array([threshold - 1, threshold, threshold + 1], dtype=np.float32)
    random = np.random.default_rng(seed)
    logits = cuts[random.integers(0, 3, (2, *shape[0]))]
    logits[:, : shape[0][0] // 2] = cuts[random.integers(0, 3)]
    if ulps:
        logits = np.nextafter(logits, np.where(random.random(logits.shape) < 0.5, 99, -99).astype(np.float32))

    assert_equal_to_full_size(logits.astype(np.float32), shape, threshold)


@pytest.mark.parametrize(
    "original_hw",
    [
        (816, 1224),
        (3456, 5184),
        (2000, 1500),
        (1024, 1024),
        (300, 301),
        (1, 5000),
        (7000, 2),
        (64, 9000),
        (1, 1),
        (64, 64),
    ],
)
@pytest.mark.parametrize("steps", ["two steps", "one step"])
def test_sams_own_sizes_work_at_any_size_and_aspect(original_hw: tuple[int, int], steps: str) -> None:
    shape = ((256, 256), (1024, 1024) if steps == "two steps" else None, original_hw)

    assert_equal_to_full_size(rough(3, (256, 256), seed=7, coarse=24), shape, threads=2)


@pytest.mark.parametrize("level", [-20.0, -1.0, 0.0, 1.0, 20.0])
def test_a_mask_of_all_or_no_pixels_is_measured(level: float) -> None:
    shape = ((64, 64), (256, 256), (300, 200))

    assert_equal_to_full_size(np.full((1, 64, 64), level, np.float32), shape)


def test_a_mask_of_one_pixel_is_found() -> None:
    shape = ((64, 64), (256, 256), (64, 63))
    logits = np.full((1, 64, 64), -1.0, np.float32)
    logits[0, 20, 30] = 3.0

    assert_equal_to_full_size(logits, shape)
    assert measure(logits, bilinear_map_of(shape), 0.0, 1.0).areas[0, 1] == 1


def test_padding_counts_for_nothing() -> None:
    shape = ((64, 64), (256, 256), (100, 400))  # a wide image: three quarters of the logits are padding
    logits = np.full((1, 64, 64), 9.0, np.float32)
    logits[0, :20] = -9.0

    assert measure(logits, bilinear_map_of(shape), 0.0, 1.0).areas.tolist() == [[0, 0, 0]]
    assert_equal_to_full_size(logits, shape)


def test_rows_wider_than_an_int16_are_summed_right() -> None:
    # transformers sums rows as int16, so a full row of 40,000 pixels counts as -25,536.
    from transformers.models.sam.image_processing_sam import _compute_stability_score

    shape = ((16, 16), None, (4, 40_000))
    logits = np.full((1, 16, 16), 0.5, np.float32)
    logits[0, :, :12] = 2.0

    areas = measure(logits, bilinear_map_of(shape), 0.0, 1.0).areas[0]

    theirs = float(_compute_stability_score(torch.from_numpy(full_size(logits, shape)), 0.0, 1.0)[0])
    assert areas[0] == 4 * 40_000
    assert 0.7 < areas[2] / areas[0] < 0.8
    assert theirs < 0
    assert_equal_to_full_size(logits, shape)


def test_torchs_own_masks_of_one_thread_differ_by_the_last_bit_alone() -> None:
    shape = ((64, 64), None, (900, 1200))
    logits = rough(3, (64, 64), seed=3, coarse=16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    together = interpolate(torch.from_numpy(logits)[None], shape[2], mode="bilinear", align_corners=False)[0].numpy()
    torch.set_num_threads(threads)

    apart = full_size(logits, shape)

    assert np.abs(together - apart).max() < 4e-6
    assert_equal_to_full_size(logits, shape)


def test_the_librarys_own_post_processing_agrees() -> None:
    from transformers.models.sam.image_processing_sam import (
        _batched_mask_to_box,
        _compute_stability_score,
        _mask_to_rle,
    )

    shape = ((64, 64), (256, 256), (333, 500))
    logits = rough(20, (64, 64), seed=3, coarse=16)
    pixels = torch.from_numpy(full_size(logits, shape))
    bilinear_map = bilinear_map_of(shape)

    measures = measure(logits, bilinear_map, 0.3, 0.8, threads=2)

    stability = measures.areas[:, 2].astype(np.float32) / measures.areas[:, 0].astype(np.float32)
    assert np.array_equal(stability, _compute_stability_score(pixels, 0.3, 0.8).numpy())
    last_pixel = np.maximum(measures.boxes_xyxy - [0, 0, 1, 1], 0)
    assert last_pixel.tolist() == _batched_mask_to_box(pixels > 0.3).tolist()
    for index, theirs in enumerate(_mask_to_rle(pixels > 0.3)):
        changes = trace(
            keep_logits_window(logits[index], measures.windows[index], bilinear_map), bilinear_map, 0.3, 333
        )
        counts: Any = coco_mask.frPyObjects(theirs, 333, 500)["counts"]
        assert encode_rle(changes, (333, 500)) == counts.decode()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), left=st.integers(0, 9), top=st.integers(0, 9), right=st.integers(0, 9),
    bottom=st.integers(0, 9), level=st.sampled_from([0.0, 9.0]),
)  # fmt: skip
def test_a_crops_mask_is_traced_in_its_place_on_the_image(
    seed: int, left: int, top: int, right: int, bottom: int, level: float
) -> None:
    shape = ((16, 16), None, (90, 120))
    logits, bilinear_map = rough(1, (16, 16), seed, coarse=4) + np.float32(level), bilinear_map_of(shape)
    image_hw = (top + 90 + bottom, left + 120 + right)
    canvas = np.zeros(image_hw, dtype=np.bool_)
    canvas[top : top + 90, left : left + 120] = full_size(logits, shape)[0] > 0

    logits_window = keep_logits_window(logits[0], measure(logits, bilinear_map, 0.0, 1.0).windows[0], bilinear_map)
    counts = encode_rle(trace(logits_window, bilinear_map, 0.0, image_hw[0], (left, top)), image_hw)

    assert counts == compressed(canvas)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0, 0.1, 0.5, 1]),
)
def test_runs_are_written_as_coco_writes_them(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    changes = np.cumsum(references.run_lengths(mask))[:-1]

    counts = encode_rle(changes, (height, width))

    assert counts == compressed(mask)
    assert np.array_equal(decode_rle(counts, (height, width)), mask)


def test_runs_of_hundred_megapixels_are_written_as_coco_writes_them() -> None:
    mask = np.zeros((10_000, 10_000), dtype=np.bool_, order="F")
    mask[3:9_990, 5_000:] = True
    mask[17, ::7] = True
    changes = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=False))

    assert encode_rle(changes, mask.shape) == compressed(mask)


def test_torch_without_fused_multiply_add_is_matched_too(repository: Path) -> None:
    program = (
        "from tests.worker.test_scanline import *\n"
        "assert torch_rounding() is Rounding.NEITHER\n"
        "for shape in [((64, 64), (256, 256), (333, 500)), ((64, 64), None, (97, 203))]:\n"
        "    assert_equal_to_full_size(rough(4, (64, 64), seed=3, coarse=16), shape, 0.3, 0.8)\n"
    )
    run = _python(program, repository, {"ATEN_CPU_CAPABILITY": "default"})

    assert run.returncode == 0, run.stderr


def test_memory_does_not_grow_with_the_image(repository: Path) -> None:
    # 100 MP: a mask at one byte per pixel would take 100 MB, its logits 400 MB.
    program = (
        "import resource\n"
        "from tests.worker.test_scanline import *\n"
        "from maskfleet.worker.masks.measure import warm_up\n"
        "def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "warm_up(); logits = rough(4, (256, 256), seed=1, coarse=64)\n"
        "encode_rle(np.array([1]), (2, 2))\n"
        "before = peak_mb()\n"
        "bilinear_map = two_steps((256, 256), (1024, 1024), (683, 1024), (8165, 12247))\n"
        "measures = measure(logits, bilinear_map, 0.0, 1.0)\n"
        "for one, window in zip(logits, measures.windows):\n"
        "    encode_rle(trace(keep_logits_window(one, window, bilinear_map), bilinear_map, 0.0, 8165), (8165, 12247))\n"
        "assert measures.areas[:, 1].max() > 1e7, measures.areas\n"
        "assert peak_mb() - before < 40, peak_mb() - before\n"
    )
    run = _python(program, repository, {})

    assert run.returncode == 0, run.stderr


def test_kernels_run_where_no_cache_can_be_written(repository: Path, tmp_path: Path) -> None:
    package = tmp_path / "maskfleet"
    shutil.copytree(repository / "worker", package / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    (package / "worker" / "masks" / "__pycache__").write_text("not a folder")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}

    run = _python("from maskfleet.worker.masks.rle import warm_up; warm_up(); print('ran')", tmp_path, nowhere)

    assert (run.returncode, run.stdout.strip()) == (0, "ran"), run.stderr


def _python(program: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_rounding_is_one_that_torch_was_seen_to_have() -> None:
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert torch_rounding() is Rounding.FIRST
