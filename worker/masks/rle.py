"""Run-length encoding of masks, in COCO's compressed form, and back.

Runs go down the columns, from left to right, and start with the background.  Their lengths are written as text: from
the fourth on as the difference from the length two before, in groups of five bits, lowest first; a group's sixth bit
says that more follow, the fifth bit of the last group is the sign, and '0' is added to each.
Source: cocoapi, common/maskApi.c, rleToString.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskfleet.worker.masks.kernel import kernel

Integers = npt.NDArray[np.int64]
#: A length needs at most seven groups: lengths and differences are below 2**32.
_DIGITS = 7


def encode_rle(changes: Integers, size_hw: tuple[int, int]) -> str:
    """Encode a mask as text.  changes: where the runs start in an image of this size, ascending."""
    pixels = size_hw[0] * size_hw[1]
    text = np.empty((len(changes) + 1) * _DIGITS, np.uint8)
    return text[: _write(changes, pixels, text)].tobytes().decode("ascii")


def decode_rle(counts: str, size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode a mask.  Returns (H, W), columns contiguous; needs one byte per pixel and no more."""
    pixels: npt.NDArray[np.uint8] = coco_mask.decode({"size": list(size_hw), "counts": counts.encode("ascii")})
    return pixels.view(np.bool_)


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    encode_rle(np.array([1, 2]), (2, 2))


@kernel
def _write(changes: Integers, pixels: int, text: npt.NDArray[np.uint8]) -> int:
    """Fill text and return its length."""
    written, position, before, last = 0, 0, 0, 0
    # A mask that reaches the last pixel has no run of background after it.
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
