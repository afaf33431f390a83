"""The memory a job needs beyond the weights and one decoded copy of the image, measured in a separate process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.core import Side, picture, sam2, vit_b

ROOT = Path(__file__).parent.parent.parent
LIMIT_GB = 0.4


def measured(
    checkpoint: Path, folder: Path, megapixels: float, *, points: int, batch: int, square: bool = False
) -> dict[str, float]:
    np.save(folder / "image.npy", picture("coins", megapixels, square=square))
    side = Side("ours", checkpoint, folder / "image.npy", batch, threads=1, allocator="default")
    try:
        return side.run(points)
    finally:
        side.close()


@pytest.mark.parametrize(("megapixels", "batch"), [(1, 1), (1, 1024), (18, 128), (100, 64)])
def test_memory_hardly_depends_on_image_and_batch(tmp_path: Path, megapixels: float, batch: int) -> None:
    found = measured(ROOT / "models" / "sam-demo", tmp_path, megapixels, points=12, batch=batch)
    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_GB


def test_the_guides_own_call_fits_into_two_gigabytes(tmp_path: Path) -> None:
    """18 MP, 128 points per batch, a network of ViT-B's size: the whole process, with Python, torch and the weights."""
    found = measured(vit_b(tmp_path / "vit-b"), tmp_path, 18, points=12, batch=128)
    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_GB
    assert found["process_gb"] < 2


def test_sam_2_large_needs_no_more(tmp_path: Path) -> None:
    """Fewer blocks than hiera large, at its widths: one of each kind needs as much memory as all of them."""
    few_blocks = {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]}
    checkpoint = sam2(tmp_path / "sam2", "large", **few_blocks)

    found = measured(checkpoint, tmp_path, 18, points=12, batch=1024, square=True)

    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_GB
