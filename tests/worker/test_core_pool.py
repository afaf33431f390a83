"""Parts of a batch run in parallel, each on one core, and are done when the call returns."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, get_ident

import pytest
import torch

from maskfleet.worker.sam.fast.core_pool import CorePool, in_parts
from maskfleet.worker.sam.fast.low_rank import Scratch

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_parts_are_worked_on_at_the_same_time_on_a_core_each(three_threads: None) -> None:
    core_pool, together, seen = CorePool(CPU), Barrier(3, timeout=10), []

    def work(part: int, scratch: Scratch) -> None:
        together.wait()
        seen.append((part, get_ident(), id(scratch), torch.get_num_threads(), torch.is_inference_mode_enabled()))

    core_pool.each(work, range(3))

    assert sorted(part for part, *_ in seen) == [0, 1, 2]
    assert len({thread for _, thread, *_ in seen}) == len({scratch for _, _, scratch, *_ in seen}) == 3
    assert all(threads == 1 and inference for *_, threads, inference in seen)
    assert torch.get_num_threads() == 3


def test_with_one_thread_the_caller_does_it_all() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(1)

    CorePool(CPU).each(lambda part, _: seen.append((part, get_ident())), range(3))

    torch.set_num_threads(before)
    assert seen == [(part, get_ident()) for part in range(3)]


def test_an_error_in_a_part_reaches_the_caller(three_threads: None) -> None:
    def work(part: int, _: Scratch) -> None:
        if part == 1:
            raise torch.OutOfMemoryError("no more")

    core_pool = CorePool(CPU)

    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        core_pool.each(work, range(3))

    core_pool.each(lambda _part, _scratch: None, range(9))  # and its buffers are back


def test_a_sequence_is_cut_into_pieces() -> None:
    assert [list(part) for part in in_parts([4, 5, 7, 8, 9], 2)] == [[4, 5], [7, 8], [9]]
    assert in_parts([], 2) == []
