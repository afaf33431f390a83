"""One prompt through the library's decoder, with a batch's rounding: how that is tested, and when it fails."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from maskfleet.worker.sam.candidates import Candidates, at_hand, decode_with_library
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import ALONE, BatchSlot, decode_in_slot, find_copies, grid_slot
from tests.worker.networks import random_embeddings, random_sam

EIGHT = PromptBatch(
    torch.arange(16.0).view(8, 1, 2), torch.ones(8, 1, dtype=torch.int64), None, tuple(range(8)), ((),) * 8
)


def rounding(whole: int) -> partial[Candidates]:
    """Return a decoder that rounds batches of at least that many copies alike, and each smaller size differently."""

    def decode(batch: PromptBatch) -> Candidates:
        assert batch.points_xy is not None
        count = len(batch.indices)
        logits = batch.points_xy.sum((1, 2))[:, None, None, None].expand(-1, 3, 2, 2)
        return at_hand(logits + (0 if count >= whole else 1e-6 * (count + 1)), logits[:, :, 0, 0])

    return partial(decode)


@pytest.mark.parametrize("whole", [1, 2, 3, 4])
def test_the_fewest_copies_that_round_as_a_batch_are_found(whole: int) -> None:
    assert find_copies(rounding(whole), EIGHT, image_positions=16) == whole


def test_where_no_number_of_copies_does_that_is_found() -> None:
    assert find_copies(rounding(5), EIGHT, image_positions=16) is None


def test_the_last_batch_of_a_grid_is_smaller() -> None:
    assert [grid_slot(index, 10, 4) for index in (0, 5, 9)] == [BatchSlot(0, 4), BatchSlot(1, 4), BatchSlot(1, 2)]
    assert grid_slot(3, 4, 64) == BatchSlot(3, 4)
    assert grid_slot(7, 9, 1) == ALONE


class Recorder(TorchFunctionMode):
    """Record, from outside, the operands of products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...], list[float]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.functional.linear, torch.Tensor.__matmul__, torch.Tensor.matmul):
            values = args[0]
            rows = values[0] if values.shape[0] == 1 else values[:, 0]
            self.seen.append((tuple(values.shape), values.stride(), rows.flatten(1).amax(1).tolist()))
        return func(*args, **(kwargs or {}))


def test_products_over_tokens_have_the_whole_batchs_rows_and_strides_and_those_over_the_image_have_not() -> None:
    def decode(batch: PromptBatch) -> Candidates:
        count, weights = len(batch.indices), torch.ones(5, 3)
        tokens, image = torch.ones(1, count, 7, 3), torch.ones(count, 1, 16, 3)
        linear, matmul = torch.nn.functional.linear(tokens, weights), tokens @ weights.t()
        one_token, over_image = (torch.nn.functional.linear(given, weights) for given in (tokens[:, :, 4], image))
        assert [made.shape for made in (linear, matmul, one_token)] == [(1, count, 7, 5)] * 2 + [(1, count, 5)]
        assert over_image.shape == (count, 1, 16, 5)
        return at_hand(linear[0, :, None], matmul[0, :, 0])

    with Recorder() as recorder:
        candidates = decode_in_slot(decode, EIGHT.part(3, 4), BatchSlot(3, 8), copies=1, image_positions=16)

    own_row = [0, 0, 0, 1, 0, 0, 0, 0]
    whole, slices = ((1, 8, 7, 3), (168, 21, 3, 1), own_row), ((1, 8, 3), (168, 21, 1), own_row)
    assert recorder.seen == [whole, whole, slices, ((1, 1, 16, 3), (48, 48, 3, 1), [1])]
    assert candidates.predicted_iou.tolist() == [[3.0] * 5]


def test_copies_come_back_as_copies() -> None:
    def decode(batch: PromptBatch) -> Candidates:
        made = torch.nn.functional.linear(torch.ones(1, len(batch.indices), 7, 3), torch.ones(5, 3))
        return at_hand(made[0, :, None], made[0, :, 0])

    candidates = decode_in_slot(decode, EIGHT.part(3, 4), BatchSlot(3, 8), copies=2, image_positions=16)

    assert candidates.predicted_iou.tolist() == [[3.0] * 5] * 2


def test_a_prompt_has_the_librarys_bits_of_any_batch_and_row(model: SegmentationModel) -> None:
    """As far as this machine was found to allow it."""
    network = random_sam(32, 2, 5)
    decode = partial(decode_with_library, network, multimask=True, image_embeddings=random_embeddings(network))
    with torch.inference_mode():
        copies = find_copies(decode, EIGHT, image_positions=25)
        for size in (2, 5, 8):
            batch = EIGHT.part(0, size)
            whole = decode(batch)
            for row in range(size):
                one = decode_in_slot(
                    decode, batch.part(row, row + 1), BatchSlot(row, size), copies=copies or 1, image_positions=25
                )
                same = torch.equal(one.predicted_iou[0], whole.predicted_iou[row])
                assert same or (copies is None and torch.allclose(one.predicted_iou[0], whole.predicted_iou[row]))


def test_a_batch_of_other_shapes_is_decoded_alone_as_it_is() -> None:
    network = random_sam(32, 2, 5)
    decode = partial(decode_with_library, network, multimask=True, image_embeddings=random_embeddings(network))

    with torch.inference_mode():
        one = decode_in_slot(decode, EIGHT.part(0, 1), ALONE, copies=1, image_positions=25)
        expected = decode(EIGHT.part(0, 1))

    assert torch.equal(one.predicted_iou, expected.predicted_iou)
