"""SAM 2's encoder in strips gives the library's feature maps, in little memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EdgeTamModel

from maskfleet.worker.sam.hiera import encode_in_strips
from tests.worker.checkpoints import save_tiny
from tests.worker.networks import random_sam2
from tests.worker.test_attention import LargestTensor


def in_strips(network: Any) -> Any:
    """Return a copy of a network with its encoder in strips."""
    ours = copy.deepcopy(network)
    encode_in_strips(ours.vision_encoder)
    return ours


def encoder(windows: list[int]) -> Any:
    """SAM 2's number of positions, which need several strips in each stage but the last, of few channels each.

    A global block, and in each stage one that keeps its size.
    """
    return random_sam2(
        32, 2, 64, hidden_size=32, blocks_per_stage=[2, 2, 3, 2], embed_dim_per_stage=[32, 64, 128, 256],
        num_attention_heads_per_stage=[1, 2, 4, 4], window_size_per_stage=windows, global_attention_blocks=[5],
    )  # fmt: skip


#: As trained ones have them, where 14 does not divide 64; windows that divide no stage but the first; those of large.
WINDOWS = [[8, 4, 14, 7], [8, 6, 10, 9], [8, 4, 16, 8]]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference, in standard deviations of the library's map."""
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    assert [one.dtype for one in ours] == [one.dtype for one in theirs]
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_the_maps_are_the_librarys(windows: list[int]) -> None:
    network = encoder(windows)
    pixels = torch.randn(1, 3, 1024, 1024)

    theirs = network.get_image_embeddings(pixels)
    ours = in_strips(network).get_image_embeddings(pixels)

    assert theirs[-1].std() > 0.1
    assert apart(ours, theirs) < 1e-5


def test_two_images_are_each_the_librarys() -> None:
    network = encoder(WINDOWS[0])
    pixels = torch.randn(2, 3, 1024, 1024)

    theirs = network.get_image_embeddings(pixels)
    ours = in_strips(network).get_image_embeddings(pixels)

    assert apart(ours, theirs) < 1e-5


@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_half_precision_is_the_librarys(way: str) -> None:
    network = encoder(WINDOWS[0])
    pixels = torch.randn(1, 3, 1024, 1024)
    if way == "weights":
        network, pixels = network.to(torch.bfloat16), pixels.to(torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        theirs = network.get_image_embeddings(pixels)
        ours = in_strips(network).get_image_embeddings(pixels)

    assert theirs[0].dtype == torch.bfloat16
    assert apart(ours, theirs) < 1e-2


def test_no_tensor_is_wider_than_the_image_but_in_a_strip() -> None:
    network = encoder(WINDOWS[0])
    pixels = torch.randn(1, 3, 1024, 1024)

    with LargestTensor() as theirs:
        network.get_image_embeddings(pixels)
    with LargestTensor() as ours:
        in_strips(network).get_image_embeddings(pixels)

    assert theirs.size == 3 * 64 * 256**2 * 4  # queries, keys and values where the second stage begins
    assert ours.size <= 3 * 1024**2 * 4  # the pixels themselves


def test_edgetams_maps_stay_without_the_positions(tmp_path: Path) -> None:
    network = EdgeTamModel.from_pretrained(save_tiny("edgetam", tmp_path)).eval()
    pixels = torch.randn(1, 3, 256, 256)

    theirs = network.get_image_embeddings(pixels)
    ours = in_strips(network).get_image_embeddings(pixels)

    assert apart(ours, theirs) < 1e-5


def test_the_parameters_keep_their_names_and_their_places_in_memory() -> None:
    network = random_sam2(32, 2, 8)
    before = {name: weight.data_ptr() for name, weight in network.named_parameters()}

    encode_in_strips(network.vision_encoder)

    assert {name: weight.data_ptr() for name, weight in network.named_parameters()} == before
