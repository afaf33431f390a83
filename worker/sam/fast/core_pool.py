"""Run the parts of a batch in parallel, each from start to end on one core.

The image's side of a prompt is a hundred small matrix products.  By default torch splits each of them over all cores
and waits for the slowest; if a core is busy with something else, waiting takes most of the time (ten times slower with
one other process on two cores).  Whole parts have nothing to wait for.  Threads are enough: torch releases the GIL
while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Barrier
from typing import TypeVar

import torch

from maskfleet.worker.sam.fast.low_rank import Scratch

Part = TypeVar("Part")

#: Each thread holds buffers of its own, some 10 MB for ViT-B.
_MOST_THREADS = 8


class CorePool:
    """As many threads as torch would use on a CPU, each with its own buffers; on a GPU only the caller's thread."""

    def __init__(self, device: torch.device) -> None:
        size = min(torch.get_num_threads(), _MOST_THREADS) if device.type == "cpu" else 1
        self._free: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(size):
            self._free.put(Scratch(device))
        self._pool = _single_core_threads(size) if size > 1 else None

    def each(self, work: Callable[[Part, Scratch], None], parts: Iterable[Part]) -> None:
        """Run the work on every part; raises what the work raises."""
        if self._pool is None:
            for part in parts:
                self._one(work, part)
        else:
            # The list waits for all of them and raises their errors.
            list(self._pool.map(lambda part: self._one(work, part), parts))

    def _one(self, work: Callable[[Part, Scratch], None], part: Part) -> None:
        scratch = self._free.get()
        try:
            with torch.inference_mode():
                work(part, scratch)
        finally:
            self._free.put(scratch)


def in_parts(sequence: Sequence[Part], at_once: int) -> list[Sequence[Part]]:
    """Split a sequence into parts."""
    return [sequence[start : start + at_once] for start in range(0, len(sequence), at_once)]


def _single_core_threads(size: int) -> ThreadPoolExecutor:
    """Start threads in which torch uses one core each; setting that in a thread also sets it for new threads."""
    everywhere = torch.get_num_threads()
    started = Barrier(size + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first query sets its number to the global one, so query before setting
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(size, thread_name_prefix="decoder", initializer=begin)
    for _ in range(size):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(everywhere)
    return pool
