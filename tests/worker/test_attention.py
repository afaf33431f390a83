"""The encoder's attention in chunks is bit-for-bit equal to the library's, in little memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SamModel

from maskfleet.worker.sam.attention import attend_in_chunks
from tests.worker.networks import random_sam


class LargestTensor(TorchDispatchMode):
    """Watch what torch computes, and record the size of the largest tensor in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel() * out.element_size())
        return out


def in_chunks(network: Any) -> Any:
    """Return a copy of a network with its attention replaced."""
    ours = copy.deepcopy(network)
    attend_in_chunks(ours.vision_encoder)
    return ours


def wide_encoder() -> Any:
    """64 × 64 positions, which need several chunks: a layer of windows (14 does not divide 64) and a global one."""
    return random_sam(64, 2, 64, hidden_size=128, num_hidden_layers=2, global_attn_indexes=[1], window_size=14)


def without_bias() -> Any:
    return random_sam(32, 2, 8, use_rel_pos=False)


@pytest.mark.parametrize("network_of", [wide_encoder, without_bias])
@pytest.mark.parametrize("images", [1, 2])
def test_embeddings_are_the_librarys_to_the_last_bit(network_of: Callable[[], Any], images: int) -> None:
    network = network_of()
    side = network.config.vision_config.image_size
    pixels = torch.randn(images, 3, side, side)

    theirs = network.get_image_embeddings(pixels)
    ours = in_chunks(network).get_image_embeddings(pixels)

    assert theirs.std() > 0.1
    assert torch.equal(ours, theirs)


def test_a_trained_encoders_embeddings_are_the_librarys_to_the_last_bit(demo_model: str) -> None:
    network = SamModel.from_pretrained(demo_model).eval()
    pixels = torch.randn(1, 3, 384, 384)

    theirs = network.get_image_embeddings(pixels)
    ours = in_chunks(network).get_image_embeddings(pixels)

    assert torch.equal(ours, theirs)


def test_no_tensor_grows_with_the_square_of_the_positions() -> None:
    network = wide_encoder()
    pixels = torch.randn(1, 3, 1024, 1024)

    with LargestTensor() as theirs:
        network.get_image_embeddings(pixels)
    with LargestTensor() as ours:
        in_chunks(network).get_image_embeddings(pixels)

    assert theirs.size >= 2 * 4096**2 * 4
    assert ours.size <= 12 * 2**20  # the pixels themselves


def test_the_parameters_keep_their_names_and_their_places_in_memory() -> None:
    network = random_sam(32, 2, 8)
    before = {name: weight.data_ptr() for name, weight in network.named_parameters()}

    attend_in_chunks(network.vision_encoder)

    assert {name: weight.data_ptr() for name, weight in network.named_parameters()} == before
    assert set(network.state_dict()) >= set(before)


def test_half_precision_stays_half() -> None:
    network = random_sam(32, 2, 8).to(torch.bfloat16)
    pixels = torch.randn(1, 3, 128, 128, dtype=torch.bfloat16)

    ours = in_chunks(network).get_image_embeddings(pixels)

    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, network.get_image_embeddings(pixels))
