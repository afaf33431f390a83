"""The fast way through SAM gives the library's predicted IoU and logits, whatever the prompts and the batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from tests.worker.networks import random_embedding, random_sam
from worker import fast_sam
from worker.decoder import Candidates, decode_with_library
from worker.fast_sam import FastSam, unsuited
from worker.prompts import PADDING, PromptBatch

#: Small and odd; ViT-B's decoder.
SHAPES = [(24, 3, 5), (256, 8, 64)]
NO_BOX = (torch.nan,) * 4


def batch(points: Any = None, labels: Any = None, boxes: Any = None, masks: Tensor | None = None) -> PromptBatch:
    """Prompts whose coordinates are shares of the image's side, 80 pixels."""
    points_xy, boxes_xyxy = (
        None if given is None else torch.tensor(given, dtype=torch.float64) * 80 for given in (points, boxes)
    )
    count = len(points_xy if points_xy is not None else boxes_xyxy if boxes_xyxy is not None else ())
    labels = None if labels is None else torch.tensor(labels)
    return PromptBatch(points_xy, labels, boxes_xyxy, tuple(range(count)), ((),) * count, masks)


POINTS = batch([[[0.1, 0.2]], [[0.7, 0.3]], [[0.5, 0.9]]], [[1], [0], [1]])
BOXES = batch(boxes=[[0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1]])
BOTH = batch([[[0.1, 0.2], [0.8, 0.8]]], [[1, 0]], [[0.1, 0.2, 0.6, 0.8]])
#: One point; two and no box; a box alone; a point and a box.
RAGGED = batch(
    [[[0.1, 0.2], [0, 0]], [[0.1, 0.2], [0.8, 0.8]], [[0, 0], [0, 0]], [[0.3, 0.3], [0, 0]]],
    [[1, PADDING], [1, 0], [PADDING, PADDING], [1, PADDING]],
    [NO_BOX, NO_BOX, [0.1, 0.2, 0.6, 0.8], [0.2, 0.1, 0.5, 0.9]],
)
RAGGED_ALONE = [
    batch([[[0.1, 0.2]]], [[1]]),
    batch([[[0.1, 0.2], [0.8, 0.8]]], [[1, 0]]),
    batch(boxes=[[0.1, 0.2, 0.6, 0.8]]),
    batch([[[0.3, 0.3]]], [[1]], [[0.2, 0.1, 0.5, 0.9]]),
]


def all_logits(candidates: Candidates) -> Tensor:
    """(N, C, h, w)"""
    rows, columns = torch.ones_like(candidates.predicted_iou).nonzero(as_tuple=True)
    made = candidates.logits(rows, columns)
    return made.view(*candidates.predicted_iou.shape, *made.shape[1:])


def assert_same(ours: Candidates, theirs: Candidates) -> None:
    """IoU to 1e-5; logits to 1e-5 of their range; signs but for logits as near to 0 as that."""
    ours_made, theirs_made = all_logits(ours), all_logits(theirs)
    near = 1e-5 * float(theirs_made.abs().max())
    assert torch.allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-5)
    assert torch.allclose(ours_made, theirs_made, atol=near, rtol=0)
    turned = (ours_made > 0) != (theirs_made > 0)
    assert float(theirs_made[turned].abs().max()) <= near if turned.any() else True


@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "a box with points"])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_are_the_librarys(shape: tuple[int, int, int], together: int, prompts: PromptBatch) -> None:
    network = random_sam(*shape)
    embedding = random_embedding(network)
    fast = FastSam(network, together)

    ours = fast.decode(fast.image_state(embedding), prompts)

    theirs = decode_with_library(network, prompts, multimask=True, image_embeddings=embedding)
    assert theirs.predicted_iou.std() > 0.01
    assert_same(ours, theirs)


@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "a box with points"])
def test_a_trained_checkpoints_candidates_are_the_librarys(demo_model: str, prompts: PromptBatch) -> None:
    network: Any = SamModel.from_pretrained(demo_model).eval().requires_grad_(False)
    embedding = network.get_image_embeddings(torch.randn(1, 3, 384, 384))
    fast = FastSam(network)

    ours = fast.decode(fast.image_state(embedding), prompts)

    assert_same(ours, decode_with_library(network, prompts, multimask=True, image_embeddings=embedding))


@pytest.mark.parametrize("together", [1, 3])
def test_prompts_of_any_shapes_together_are_each_as_the_library_has_them_alone(together: int) -> None:
    network = random_sam(32, 2, 5)
    embedding = random_embedding(network)
    fast = FastSam(network, together)

    ours = fast.decode(fast.image_state(embedding), RAGGED)

    alone = [decode_with_library(network, one, multimask=True, image_embeddings=embedding) for one in RAGGED_ALONE]
    made = torch.cat([all_logits(one) for one in alone])
    assert_same(ours, Candidates(torch.cat([one.predicted_iou for one in alone]), lambda r, c: made[r, c]))


@pytest.mark.parametrize("prompts", [POINTS, BOTH], ids=["points", "a box with points"])
def test_prompts_with_a_mask_are_the_librarys(prompts: PromptBatch) -> None:
    network = random_sam(32, 2, 5)
    embedding = random_embedding(network)
    fast = FastSam(network)
    masks = torch.randn(len(prompts.indices), 20, 20) * 5
    prompts = PromptBatch(prompts.points_xy, prompts.labels, prompts.boxes_xyxy, prompts.indices, (), masks)

    ours = fast.decode(fast.image_state(embedding), prompts)

    assert_same(ours, decode_with_library(network, prompts, multimask=True, image_embeddings=embedding))


@pytest.mark.parametrize("together", [1, 2, 8])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [([2, 0, 2, 1], [0, 1, 2, 2]), ([1], [0]), ([0, 2, 2, 2], [1, 0, 1, 2]), ([1, 1], [0, 0]), ([], [])],
    ids=["in any order", "one", "of some prompts", "one twice", "none"],
)
def test_masks_are_made_of_any_candidates(together: int, rows: list[int], columns: list[int]) -> None:
    network = random_sam(32, 2, 5)
    fast = FastSam(network, together)
    candidates = fast.decode(fast.image_state(random_embedding(network)), POINTS)
    everything = all_logits(candidates)
    chosen = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)

    made = candidates.logits(*chosen)

    assert made.shape == (len(rows), 20, 20)
    assert torch.allclose(made, everything[chosen], atol=1e-5)


def test_more_prompts_than_may_be_held_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_sam(32, 2, 5)
    held, short = FastSam(network), FastSam(network)
    state = held.image_state(random_embedding(network))
    points = [[[0.1 * number, 0.5]] for number in range(7)]
    many = batch(points, [[1]] * 7)
    monkeypatch.setitem(fast_sam._HELD_BYTES, "cpu", 3 * short.point_bytes)

    ours = short.decode(state, many)

    monkeypatch.undo()
    expected = held.decode(state, many)
    assert_same(ours, expected)
    chosen = torch.tensor([6, 0, 3]), torch.tensor([0, 2, 1])
    assert torch.allclose(ours.logits(*chosen), expected.logits(*chosen), atol=1e-5)


def test_a_network_in_half_precision_is_decoded_in_float32() -> None:
    network = random_sam(32, 2, 5)
    half = copy.deepcopy(network).to(torch.bfloat16)
    embedding = random_embedding(network).to(torch.bfloat16)
    fast = FastSam(half)

    ours = fast.decode(fast.image_state(embedding), POINTS)

    exact = copy.deepcopy(half).float()
    theirs = decode_with_library(exact, POINTS, multimask=True, image_embeddings=embedding.float())
    assert all_logits(ours).dtype == torch.float32
    assert half.mask_decoder.iou_token.weight.dtype == torch.bfloat16
    assert torch.allclose(ours.predicted_iou, theirs.predicted_iou, atol=0.05)


def test_what_is_built_otherwise_is_told() -> None:
    network = random_sam(32, 2, 5)
    assert unsuited(network) is None

    network.mask_decoder.transformer.layers.append(copy.deepcopy(network.mask_decoder.transformer.layers[1]))

    assert "3 layers" in (unsuited(network) or "")
