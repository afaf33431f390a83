"""The transformer on a low-rank image gives the library's tokens, and its image when expanded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from maskfleet.worker.sam.fast.core_pool import CorePool
from maskfleet.worker.sam.fast.folding import FoldedDecoder, centred, fold, out_projection
from maskfleet.worker.sam.fast.image_state import ImageState, biases_alone, image_state
from maskfleet.worker.sam.fast.low_rank import LowRankImage, Scratch
from maskfleet.worker.sam.fast.tokens import Tokens
from maskfleet.worker.sam.fast.two_way import LayerOutput, TwoWay
from tests.worker.networks import random_embedding, random_network
from tests.worker.test_attention import LargestTensor

CPU = torch.device("cpu")

#: (channels, heads, positions to a side): small and odd; the demo's; ViT-B's.
SHAPES = [(24, 3, 5), (128, 4, 24), (256, 8, 64)]
KINDS = ("sam", "sam2")


class Side:
    """A network's decoder and the library's, with one image."""

    def __init__(self, channels: int, heads: int, grid: int, kind: str = "sam") -> None:
        self.network = random_network(kind, channels, heads, grid)
        self.decoder = self.network.mask_decoder
        self.embedding = random_embedding(self.network)
        self.dense = self.network.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        positions = self.network.get_image_wide_positional_embeddings()[0].flatten(1).t()
        self.folded: FoldedDecoder = fold(self.decoder, positions)
        upscale_bias = biases_alone(self.folded)
        self.state: ImageState = image_state(self.folded, self.decoder, self.embedding, self.dense, upscale_bias)

    def tokens(self, prompts: int, own: int, *, seed: int = 2) -> Tensor:
        torch.manual_seed(seed)
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        if hasattr(self.decoder, "obj_score_token"):
            output = torch.cat([self.decoder.obj_score_token.weight, output])
        return torch.cat([output.expand(prompts, -1, -1), torch.randn(prompts, own, output.shape[1])], dim=1)

    def run_layers(self, tokens: Tokens, together: int = 1) -> tuple[TwoWay, LayerOutput]:
        two_way = TwoWay(self.decoder, self.folded, Scratch(CPU), CorePool(CPU), together)
        return two_way, two_way.run_layers(self.state, tokens)

    def theirs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the library's tokens (N, n, C) and images (N, P, C)."""
        image = (self.embedding + self.dense).repeat(len(tokens), 1, 1, 1).to(tokens)
        positions = self.network.get_image_wide_positional_embeddings().repeat(len(tokens), 1, 1, 1).to(tokens)
        transformer = copy.deepcopy(self.decoder.transformer).to(tokens)
        queries, keys = transformer(tokens[:, None], image, positions, None)
        return queries[:, 0], keys[:, 0]


def written_out(side: Side, image: LowRankImage) -> Tensor:
    """Return the image after layer 2, (N, P, C), by the definition of its low-rank form."""
    first, second = side.decoder.transformer.layers
    x = (side.embedding + side.dense)[0].flatten(1).t()
    own = centred(centred(x + out_projection(first.cross_attn_image_to_token).bias) * first.layer_norm4.weight)
    normed = image.scale[:, :, None] * own + image.rows.transpose(1, 2) @ image.basis
    return normed * second.layer_norm4.weight + second.layer_norm4.bias


def assert_as_exact(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Assert that ours is about as close to double precision as theirs: rounding depends on the order of sums."""
    assert float((ours - exact).abs().max()) <= 2 * float((theirs - exact).abs().max()) + 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_image_are_as_exact_as_the_librarys(kind: str, shape: tuple[int, int, int], together: int) -> None:
    side = Side(*shape, kind)
    tokens = side.tokens(prompts=3, own=2)

    two_way, layer_output = side.run_layers(Tokens(tokens, None), together)
    attended = two_way.final_attention(side.state, layer_output, range(3), torch.arange(tokens.shape[1]).expand(3, -1))

    their_tokens, their_image = side.theirs(tokens)
    exact_tokens, exact_image = side.theirs(tokens.double())
    assert_as_exact(attended, their_tokens, exact_tokens)
    assert_as_exact(written_out(side, layer_output.image), their_image, exact_image)
    assert torch.allclose(attended, their_tokens, atol=5e-4)


def test_a_prompt_alone_with_many_tokens_is_the_librarys() -> None:
    side = Side(32, 2, 8)
    tokens = side.tokens(prompts=1, own=40)

    two_way, layer_output = side.run_layers(Tokens(tokens, None))
    attended = two_way.final_attention(side.state, layer_output, [0], torch.tensor([[0, 2]]))

    assert torch.allclose(attended, side.theirs(tokens)[0][:, [0, 2]], atol=2e-5)


@pytest.mark.parametrize("together", [1, 3])
def test_padding_counts_for_nothing(together: int) -> None:
    side = Side(32, 2, 8)
    tokens = side.tokens(prompts=3, own=4)
    padded = torch.zeros(3, 9, dtype=torch.bool)
    padded[0, 6:], padded[2, 7] = True, True

    two_way, layer_output = side.run_layers(Tokens(tokens, padded), together)
    output = two_way.final_attention(side.state, layer_output, range(3), torch.arange(5).expand(3, -1))

    for ours, image, values, missing in zip(output, written_out(side, layer_output.image), tokens, padded, strict=True):
        their_tokens, their_image = side.theirs(values[None, ~missing])
        assert torch.allclose(ours, their_tokens[0, :5], atol=2e-5)
        assert torch.allclose(image, their_image[0], atol=2e-5)


@pytest.mark.parametrize("prompts", [[1, 2], [0, 3]], ids=["side by side", "apart"])
def test_some_prompts_conclude_as_all_do(prompts: list[int]) -> None:
    side = Side(32, 2, 8)
    two_way, layer_output = side.run_layers(Tokens(side.tokens(prompts=4, own=2), None), together=2)
    everyone = two_way.final_attention(side.state, layer_output, range(4), torch.arange(5).expand(4, -1))

    some = two_way.final_attention(side.state, layer_output, prompts, torch.tensor([[1, 4], [2, 3]]))

    expected = torch.stack([everyone[prompts[0], [1, 4]], everyone[prompts[1], [2, 3]]])
    assert torch.allclose(some, expected, atol=1e-5)


def test_an_image_that_somebody_holds_is_not_written_over() -> None:
    side = Side(32, 2, 8)
    two_way, held = side.run_layers(Tokens(side.tokens(prompts=2, own=2), None))
    before = held.image.rows.clone()

    two_way.run_layers(side.state, Tokens(side.tokens(prompts=2, own=2, seed=3), None))

    assert torch.equal(held.image.rows, before)


def test_memory_is_lent_again_once_its_taker_is_gone() -> None:
    scratch = Scratch(CPU)
    held, dropped = scratch.lend(10), scratch.lend(20)
    place = dropped.data_ptr()

    del dropped
    again, other = scratch.lend(15), scratch.lend(5)

    assert again.data_ptr() == place
    assert len({held.data_ptr(), again.data_ptr(), other.data_ptr()}) == 3


def test_no_image_is_made_for_each_prompt() -> None:
    side = Side(256, 2, 24)
    tokens = Tokens(side.tokens(prompts=8, own=2), None)

    with LargestTensor() as watch:
        side.run_layers(tokens)

    assert watch.size < 8 * 24 * 24 * 256 * 4 / 2
