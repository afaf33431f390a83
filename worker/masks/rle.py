"""Run-length encoding of masks, in COCO's compressed form, and back.

Runs go down the columns, from left to right, and begin with the background.  Their lengths are written as text: from
the fourth on as the difference to the length two before, in digits of five bits, the lowest first; a digit's sixth bit
says that more follow, its fifth bit in the last digit is the sign, and '0' is added to each.
Source: cocoapi, common/maskApi.c, rleToString.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskfleet.worker.masks.kernel import kernel

Integers = npt.NDArray[np.int64]
#: A length needs at most seven digits: it is below 2**32, and so are differences.
_DIGITS = 7


def write_runs(changes: Integers, size_hw: tuple[int, int]) -> str:
    """Write a mask as text.  changes: where runs of an image of this size begin, ascending."""
    pixels = size_hw[0] * size_hw[1]
    text = np.empty((len(changes) + 1) * _DIGITS, np.uint8)
    return text[: _write(changes, pixels, text)].tobytes().decode("ascii")


def decode_runs(counts: str, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Draw a mask.  Returns (H, W), columns contiguous: one byte for each pixel, and nothing beside it."""
    pixels: npt.NDArray[np.uint8] = coco_mask.decode({"size": list(size_hw), "counts": counts.encode("ascii")})
    return pixels.view(np.bool_)


def warm_up() -> None:
    """Compile, or find what was compiled before."""
    write_runs(np.array([1, 2]), (2, 2))


@kernel
def _write(changes: Integers, pixels: int, text: npt.NDArray[np.uint8]) -> int:
    """Fill text and return its length."""
    written, position, before, last = 0, 0, 0, 0
    # A mask that goes to the last pixel has no run of background behind it.
    runs = len(changes) + (0 if len(changes) and changes[-1] == pixels else 1)
    for run in range(runs):
        end = changes[run] if run < len(changes) else pixels
        length = end - position
        left = length - before if run > 2 else length
        position, before, last = end, last, length
        more = True
        while more:
            digit = left & 0x1F
            left >>= 5
            more = left != (-1 if digit & 0x10 else 0)
            text[written] = digit + (0x20 if more else 0) + 48
            written += 1
    return written
