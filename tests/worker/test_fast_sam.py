"""The fast implementation of SAM and SAM 2 gives the library's scores and logits, for any prompts and batches."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from maskfleet.worker.image.decode import Photo
from maskfleet.worker.sam.candidates import Candidates, decode_with_library
from maskfleet.worker.sam.crops import whole
from maskfleet.worker.sam.families.library import in_float32
from maskfleet.worker.sam.fast.sam import FastSam
from maskfleet.worker.sam.fast.sam2 import FastSam2
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import PADDING, PromptBatch, grid_batches
from tests.worker.networks import random_embeddings, random_network, random_sam2

#: Small and odd; ViT-B's decoder.
SHAPES = [(24, 3, 5), (256, 8, 64)]
FAST = {"sam": FastSam, "sam2": FastSam2}
each_kind = pytest.mark.parametrize("kind", FAST)
NO_BOX = (torch.nan,) * 4


def batch(points: Any = None, labels: Any = None, boxes: Any = None, masks: Tensor | None = None) -> PromptBatch:
    """Return prompts whose coordinates are fractions of the image's side, 80 pixels."""
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


def one_after_another(alone: list[Candidates]) -> Candidates:
    made = torch.cat([all_logits(one) for one in alone])
    scores = [one.object_score for one in alone if one.object_score is not None]
    return Candidates(
        torch.cat([one.predicted_iou for one in alone]),
        lambda rows, columns: made[rows, columns],
        torch.cat(scores) if scores else None,
    )


def with_masks(prompts: PromptBatch, side: int) -> PromptBatch:
    """Return the same prompts, each with its own mask."""
    torch.manual_seed(7)
    return dataclasses.replace(prompts, mask_input=torch.randn(len(prompts.indices), side, side) * 5)


def stability(masks: Tensor, delta: float) -> Tensor:
    """Return the area above +delta over the area above -delta.  masks: (N, h, w)."""
    return (masks > delta).sum((1, 2)) / (masks > -delta).sum((1, 2))


def assert_same(ours: Candidates, theirs: Candidates) -> None:
    """Assert IoU and object score to 1e-5, logits to 1e-5 of their range, signs except for logits that close to 0."""
    assert (ours.object_score is None) == (theirs.object_score is None)
    if ours.object_score is not None and theirs.object_score is not None:
        assert torch.allclose(ours.object_score, theirs.object_score, atol=1e-5)
    ours_made, theirs_made = all_logits(ours), all_logits(theirs)
    near = 1e-5 * float(theirs_made.abs().max())
    assert torch.allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-5)
    assert torch.allclose(ours_made, theirs_made, atol=near, rtol=0)
    turned = (ours_made > 0) != (theirs_made > 0)
    assert float(theirs_made[turned].abs().max()) <= near if turned.any() else True


@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "a box with points"])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@each_kind
def test_candidates_are_the_librarys(
    kind: str, shape: tuple[int, int, int], together: int, prompts: PromptBatch
) -> None:
    network = random_network(kind, *shape)
    embeddings = random_embeddings(network)
    fast = FAST[kind](network, together)

    ours = fast.decode(fast.image_state(embeddings), prompts)

    theirs = decode_with_library(network, prompts, multimask=True, image_embeddings=embeddings)
    assert theirs.predicted_iou.std() > 0.01
    assert_same(ours, theirs)


@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "a box with points"])
@each_kind
def test_the_single_mask_is_the_librarys(kind: str, prompts: PromptBatch) -> None:
    network = random_network(kind, 24, 3, 5)
    embeddings = random_embeddings(network)
    fast = FAST[kind](network)

    ours = fast.decode(fast.image_state(embeddings), prompts, multimask=False)

    theirs = decode_with_library(network, prompts, multimask=False, image_embeddings=embeddings)
    assert ours.predicted_iou.shape[1] == 1
    assert_same(ours, theirs)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masks given"])
@pytest.mark.parametrize("by_stability", [False, True])
def test_sam_2_leaves_an_unstable_single_mask_for_the_best_of_three(by_stability: bool, masked: bool) -> None:
    network = random_sam2(32, 2, 5)
    embeddings = random_embeddings(network)
    decoder = network.mask_decoder
    places = torch.cartesian_prod(torch.linspace(0, 1, 4), torch.linspace(0, 1, 4))[:, None].tolist()
    many = batch(places, [[1]] * 16)
    if masked:
        many = with_masks(many, 20)
    decoder.dynamic_multimask_via_stability = False
    single = decode_with_library(network, many, multimask=False, image_embeddings=embeddings)
    stable = stability(all_logits(single)[:, 0], decoder.dynamic_multimask_stability_delta).unique()
    middle = len(stable) // 2
    decoder.dynamic_multimask_stability_thresh = float(stable[middle - 1 : middle + 1].mean())
    decoder.dynamic_multimask_via_stability = by_stability
    fast = FastSam2(network)

    ours = fast.decode(fast.image_state(embeddings), many, multimask=False)

    theirs = decode_with_library(network, many, multimask=False, image_embeddings=embeddings)
    kept = (theirs.predicted_iou == single.predicted_iou).float().mean()
    assert 0.2 < kept < 0.8 if by_stability else kept == 1
    assert_same(ours, theirs)


def test_an_empty_single_mask_is_stable() -> None:
    network = random_sam2(32, 2, 5)
    embeddings = random_embeddings(network)
    for tower in network.mask_decoder.output_hypernetworks_mlps[:1]:
        tower.proj_out.weight.zero_()
        tower.proj_out.bias.zero_()
    network.mask_decoder.dynamic_multimask_stability_delta = 0.0
    fast = FastSam2(network)

    ours = fast.decode(fast.image_state(embeddings), POINTS, multimask=False)

    assert not all_logits(ours).any()
    assert_same(ours, decode_with_library(network, POINTS, multimask=False, image_embeddings=embeddings))


@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "a box with points"])
def test_a_trained_checkpoints_candidates_are_the_librarys(demo_model: str, prompts: PromptBatch) -> None:
    network: Any = SamModel.from_pretrained(demo_model).eval().requires_grad_(False)
    embedding = network.get_image_embeddings(torch.randn(1, 3, 384, 384))
    fast = FastSam(network)

    ours = fast.decode(fast.image_state(embedding), prompts)

    assert_same(ours, decode_with_library(network, prompts, multimask=True, image_embeddings=embedding))


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("together", [1, 3])
@each_kind
def test_prompts_of_any_shapes_together_are_each_as_the_library_has_them_alone(
    kind: str, together: int, multimask: bool
) -> None:
    network = random_network(kind, 32, 2, 5)
    embeddings = random_embeddings(network)
    fast = FAST[kind](network, together)

    ours = fast.decode(fast.image_state(embeddings), RAGGED, multimask=multimask)

    alone = [
        decode_with_library(network, one, multimask=multimask, image_embeddings=embeddings) for one in RAGGED_ALONE
    ]
    assert_same(ours, one_after_another(alone))


@pytest.mark.parametrize("prompts", [POINTS, BOTH], ids=["points", "a box with points"])
@each_kind
def test_prompts_with_a_mask_are_the_librarys(kind: str, prompts: PromptBatch) -> None:
    network = random_network(kind, 32, 2, 5)
    embeddings = random_embeddings(network)
    fast = FAST[kind](network)
    prompts = with_masks(prompts, 20)

    ours = fast.decode(fast.image_state(embeddings), prompts)

    assert_same(ours, decode_with_library(network, prompts, multimask=True, image_embeddings=embeddings))


@pytest.mark.parametrize("together", [1, 2, 8])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [([2, 0, 2, 1], [0, 1, 2, 2]), ([1], [0]), ([0, 2, 2, 2], [1, 0, 1, 2]), ([1, 1], [0, 0]), ([], [])],
    ids=["in any order", "one", "of some prompts", "one twice", "none"],
)
@each_kind
def test_masks_are_made_of_any_candidates(kind: str, together: int, rows: list[int], columns: list[int]) -> None:
    network = random_network(kind, 32, 2, 5)
    fast = FAST[kind](network, together)
    candidates = fast.decode(fast.image_state(random_embeddings(network)), POINTS)
    everything = all_logits(candidates)
    chosen = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)

    made = candidates.logits(*chosen)

    assert made.shape == (len(rows), 20, 20)
    assert torch.allclose(made, everything[chosen], atol=1e-5)


@each_kind
def test_more_prompts_than_may_be_held_are_decoded_in_parts(kind: str) -> None:
    network = random_network(kind, 32, 2, 5)
    held = FAST[kind](network)
    short = FAST[kind](network, held_bytes=3 * held.point_bytes)
    state = held.image_state(random_embeddings(network))
    points = [[[0.1 * number, 0.5]] for number in range(7)]
    many = batch(points, [[1]] * 7)

    ours = short.decode(state, many)

    expected = held.decode(state, many)
    assert_same(ours, expected)
    chosen = torch.tensor([6, 0, 3]), torch.tensor([0, 2, 1])
    assert torch.allclose(ours.logits(*chosen), expected.logits(*chosen), atol=1e-5)
    assert (ours.object_score is None) == (kind == "sam")


@each_kind
def test_a_network_in_half_precision_is_decoded_in_float32(kind: str) -> None:
    network = random_network(kind, 32, 2, 5)
    half = copy.deepcopy(network).to(torch.bfloat16)
    embeddings = random_embeddings(network)
    rounded = [one.to(torch.bfloat16) for one in embeddings] if kind == "sam2" else embeddings.to(torch.bfloat16)
    fast = FAST[kind](half)

    ours = fast.decode(fast.image_state(rounded), POINTS)

    exact = copy.deepcopy(half).float()
    theirs = decode_with_library(exact, POINTS, multimask=True, image_embeddings=in_float32(rounded))
    assert all_logits(ours).dtype == torch.float32
    assert half.mask_decoder.iou_token.weight.dtype == torch.bfloat16
    assert torch.allclose(ours.predicted_iou, theirs.predicted_iou, atol=0.05)


@each_kind
def test_what_is_built_otherwise_is_told(kind: str) -> None:
    network = random_network(kind, 32, 2, 5)
    assert FAST[kind].unsuited(network) is None

    network.mask_decoder.transformer.layers.append(copy.deepcopy(network.mask_decoder.transformer.layers[1]))

    assert "3 layers" in (FAST[kind].unsuited(network) or "")


def test_maps_of_other_sizes_than_the_upscalings_are_told() -> None:
    network = random_sam2(32, 2, 5)

    network.backbone_feature_sizes = [[20, 20], [10, 10], [10, 10]]

    assert "[10, 10]]" in (FastSam2.unsuited(network) or "")


def test_a_masks_logits_are_the_same_bits_whatever_others_are_wanted(
    model: SegmentationModel, example: Callable[[str], Photo]
) -> None:
    """Else a mask would depend on the thresholds that choose the others."""
    photo = example("coins.png")
    embedding = model.family.embed(photo.pixels)
    batch = next(iter(grid_batches(whole(photo.size_wh, 8), embedding.frame, 40)))
    candidates = model.family.decode(embedding, batch)
    rows, columns = torch.ones(candidates.predicted_iou.shape).nonzero(as_tuple=True)
    everyone = candidates.logits(rows, columns)

    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        some = torch.rand(len(rows), generator=torch.Generator().manual_seed(7)) < share

        assert torch.equal(candidates.logits(rows[some], columns[some]), everyone[some])
