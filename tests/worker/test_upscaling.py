"""Upscaling only the wanted masks gives the same as the library's convolutions for all."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from maskfleet.worker.sam.fast.image_state import with_finer_maps
from maskfleet.worker.sam.fast.low_rank import Scratch
from maskfleet.worker.sam.fast.tokens import Tokens
from maskfleet.worker.sam.fast.upscaling import Upscaling
from tests.worker.networks import random_embeddings
from tests.worker.test_two_way import CPU, SHAPES, Side, written_out


def library_masks(
    side: Side, image: Tensor, tokens: Tensor, masks: Tensor, finer: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
) -> Tensor:
    """Return the masks (N, k, 4h, 4w) from the library's modules, as in its decoder's forward.

    finer: SAM 2's maps of the image, at four times and at twice its size.
    """
    decoder, (height, width) = side.decoder, side.state.size_hw
    maps = image.transpose(1, 2).reshape(len(image), -1, height, width)
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(maps) + finer[1]))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled) + finer[0])
    vectors = torch.stack(
        [
            torch.stack([decoder.output_hypernetworks_mlps[mask](token) for token, mask in zip(*pair, strict=True)])
            for pair in zip(tokens, masks.tolist(), strict=True)
        ]
    )
    return torch.einsum("nkc,nchw->nkhw", vectors, upscaled)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_librarys(shape: tuple[int, int, int]) -> None:
    side = Side(*shape)
    _, layer_output = side.run_layers(Tokens(side.tokens(prompts=2, own=2), None))
    tokens = torch.randn(2, 3, shape[0])
    masks = torch.tensor([[1, 2, 3], [3, 0, 0]])
    upscaling = Upscaling(side.decoder, side.folded)

    ours = upscaling.logits(side.state, layer_output.image, upscaling.vectors(tokens, masks), Scratch(CPU))

    theirs = library_masks(side, written_out(side, layer_output.image), tokens, masks)
    assert ours.shape == (2, 3, 4 * shape[2], 4 * shape[2])
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_finer_maps_of_the_image_are_added_as_the_library_does(shape: tuple[int, int, int]) -> None:
    side = Side(*shape, "sam2")
    four_times, twice, _ = random_embeddings(side.network)
    state = dataclasses.replace(side.state, upscale_bias=with_finer_maps(side.folded, twice, four_times))
    _, layer_output = side.run_layers(Tokens(side.tokens(prompts=2, own=2), None))
    tokens = torch.randn(2, 3, shape[0])
    masks = torch.tensor([[1, 2, 3], [3, 0, 0]])
    upscaling = Upscaling(side.decoder, side.folded)

    ours = upscaling.logits(state, layer_output.image, upscaling.vectors(tokens, masks), Scratch(CPU))

    image = written_out(side, layer_output.image)
    theirs = library_masks(side, image, tokens, masks, (four_times, twice))
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))
    assert not torch.allclose(theirs, library_masks(side, image, tokens, masks), atol=0.01 * float(theirs.abs().max()))


def test_one_prompt_at_a_time_is_as_all_at_once() -> None:
    side = Side(32, 2, 8)
    _, layer_output = side.run_layers(Tokens(side.tokens(prompts=3, own=2), None))
    vectors = torch.randn(3, 2, 4)
    upscaling = Upscaling(side.decoder, side.folded)

    together = upscaling.logits(side.state, layer_output.image, vectors, Scratch(CPU))

    for prompt in range(3):
        one = upscaling.logits(side.state, layer_output.image.take([prompt]), vectors[[prompt]], Scratch(CPU))
        assert torch.allclose(one[0], together[prompt], atol=1e-5)
