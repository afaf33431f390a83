"""The memory a job needs beyond the weights and one decoded copy of the image, measured in a separate process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from benchmarks.core import Side, picture, sam2, vit_b

ROOT = Path(__file__).parent.parent.parent
LIMIT_GB = 0.4
#: Of which a process takes some at its first job and keeps it, 0.06 GB: a process that has had a job has this left.
LIMIT_OF_LATER_JOBS_GB = LIMIT_GB - 0.1
#: ViT-B's encoder has more blocks than `FEW_BLOCKS`: seven like the first of those, and three like the second.
FEW_BLOCKS = {"num_hidden_layers": 2, "global_attn_indexes": [1]}
MORE_BLOCKS = {"vision_encoder.layers.0.": 7, "vision_encoder.layers.1.": 3}


@contextmanager
def side(checkpoint: Path, image: Path, *, batch: int) -> Iterator[Side]:
    side = Side("ours", checkpoint, image, batch, threads=1, allocator="default")
    try:
        yield side
    finally:
        side.close()


def save_picture(folder: Path, megapixels: float, *, square: bool = False) -> Path:
    image = folder / f"{megapixels:g}.npy"
    np.save(image, picture("coins", megapixels, square=square))
    return image


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """The demo model's process, for one job after another; each one's peak is above what the process held before."""
    with side(ROOT / "models" / "sam-demo", save_picture(tmp_path_factory.mktemp("demo"), 0.1), batch=1) as demo:
        demo.run(12)
        yield demo


@pytest.mark.parametrize(("megapixels", "batch"), [(1, 1), (1, 1024), (18, 128), (100, 64)])
def test_memory_hardly_depends_on_image_and_batch(demo: Side, tmp_path: Path, megapixels: float, batch: int) -> None:
    found = demo.run(12, batch, save_picture(tmp_path, megapixels))

    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_OF_LATER_JOBS_GB


def test_the_guides_own_call_fits_into_two_gigabytes(tmp_path: Path) -> None:
    """18 MP, 128 points per batch, a network of ViT-B's size: the whole process, with Python, torch and the weights.

    One block of each kind needs as much memory as all of them; there must be room for the others' weights, twice, as
    while they are read.
    """
    checkpoint = vit_b(tmp_path / "vit-b", **FEW_BLOCKS)
    with side(checkpoint, save_picture(tmp_path, 18), batch=128) as process:
        found = process.run(12)

    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_GB - 0.03  # the peak with all blocks is 0.03 GB higher
    assert found["process_gb"] < 2 - 2 * more_blocks_gb(checkpoint)


def more_blocks_gb(checkpoint: Path) -> float:
    """Return the size of the blocks that ViT-B has besides."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        size = sum(
            times * file.get_tensor(name).nbytes
            for prefix, times in MORE_BLOCKS.items()
            for name in file.keys()  # noqa: SIM118  it is no dictionary
            if name.startswith(prefix)
        )
    assert size > 10 * 768 * 768 * 12 * 4
    return size / 2**30


def test_sam_2_large_needs_no_more(tmp_path: Path) -> None:
    """Fewer blocks than hiera large, at its widths: one of each kind needs as much memory as all of them."""
    few_blocks = {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]}
    checkpoint = sam2(tmp_path / "sam2", "large", **few_blocks)

    with side(checkpoint, save_picture(tmp_path, 18, square=True), batch=1024) as process:
        found = process.run(12)

    assert found["kept"] > 0
    assert found["peak_gb"] < LIMIT_GB
