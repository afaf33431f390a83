"""Prompts become the same tokens as in the library's prompt encoder; padding in a batch is marked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2Model

from maskfleet.worker.sam.fast.tokens import PromptTokens, Tokens
from maskfleet.worker.sam.prompts import PADDING, PromptBatch
from tests.worker.networks import random_network

GRID = 8
NO_BOX = (torch.nan,) * 4


@pytest.fixture(scope="module", params=["sam", "sam2"])
def network(request: pytest.FixtureRequest) -> Any:
    return random_network(request.param, 32, 2, GRID)


def batch(points: Any = None, labels: Any = None, boxes: Any = None, dtype: torch.dtype = torch.float64) -> PromptBatch:
    count = len(points if points is not None else boxes)
    return PromptBatch(
        None if points is None else torch.tensor(points, dtype=dtype),
        None if labels is None else torch.tensor(labels),
        None if boxes is None else torch.tensor(boxes, dtype=dtype),
        tuple(range(count)),
        ((),) * count,
    )


def ours(network: Any, prompts: PromptBatch) -> Tokens:
    ends_boxes = isinstance(network, Sam2Model)
    return PromptTokens(network.prompt_encoder, output_tokens(network), ends_boxes=ends_boxes).of(prompts)


def output_tokens(network: Any) -> Tensor:
    return torch.cat([network.mask_decoder.iou_token.weight, network.mask_decoder.mask_tokens.weight])


def theirs(network: Any, prompts: PromptBatch) -> Tensor:
    sparse, _ = network.prompt_encoder(
        *(None if given is None else given[None] for given in (prompts.points_xy, prompts.labels, prompts.boxes_xyxy)),
        None,
    )
    return torch.cat([output_tokens(network).expand(sparse.shape[1], -1, -1), sparse[0]], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "given",
    [
        {"points": [[[3.3, 4.1]], [[100, 7.7]]], "labels": [[1], [0]]},
        {"points": [[[3.3, 4.1], [90, 90]]], "labels": [[-1, 1]]},
        {"boxes": [[1.1, 2.2, 60.6, 70.7], [0, 0, 128, 128]]},
        {"points": [[[3.3, 4.1], [90, 90], [8, 9]]], "labels": [[0, 1, 1]], "boxes": [[1, 2, 60, 70]]},
    ],
    ids=["points", "the library's own label for no point", "boxes", "a box with points"],
)
def test_prompts_of_one_shape_become_the_librarys_tokens(network: Any, given: Any, dtype: torch.dtype) -> None:
    prompts = batch(**given, dtype=dtype)

    tokens = ours(network, prompts)

    assert tokens.padded is None
    assert torch.allclose(tokens.values, theirs(network, prompts), atol=1e-6)


def test_in_a_padded_batch_each_prompt_has_the_tokens_it_has_alone(network: Any) -> None:
    point, sides, box = [[30.5, 40]], [[3.3, 4.1], [90, 90]], [1.1, 2.2, 60.6, 70.7]
    nowhere = [0.0, 0.0]

    together = ours(
        network,
        batch(
            points=[[*point, nowhere], sides, [nowhere, nowhere], [*point, nowhere]],
            labels=[[1, PADDING], [1, 0], [PADDING, PADDING], [0, PADDING]],
            boxes=[NO_BOX, NO_BOX, box, box],
        ),
    )

    alone = [
        batch(points=[point], labels=[[1]]),
        batch(points=[sides], labels=[[1, 0]]),
        batch(boxes=[box]),
        batch(points=[point], labels=[[0]], boxes=[box]),
    ]
    assert together.padded is not None
    for values, padded, prompt in zip(together.values, together.padded, alone, strict=True):
        assert torch.allclose(values[~padded], theirs(network, prompt)[0], atol=1e-6)


def test_prompts_are_taken_with_their_padding(network: Any) -> None:
    tokens = ours(network, batch(points=[[[1, 1]], [[2, 2]], [[3, 3]]], labels=[[1], [PADDING], [1]]))

    some = tokens.take([1, 2])

    assert torch.equal(some.values, tokens.values[1:])
    assert some.padded is not None
    assert some.padded.sum(1).tolist() == [1, 0]
