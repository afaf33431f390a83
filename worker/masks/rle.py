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
#: (N, 3): a column, the first row inside the mask, and the first one below that is not.
Spans = npt.NDArray[np.int32]
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


def column_spans(counts: str, size_hw: tuple[int, int]) -> Spans:
    """Decode a mask to where it is in each column, from left to right and downwards, without its pixels."""
    text = np.frombuffer(counts.encode("ascii"), np.int8)
    height, width = size_hw
    spans = np.empty((_read(text, height, width, np.empty((0, 3), np.int32)), 3), np.int32)
    _read(text, height, width, spans)
    return spans


def warm_up() -> None:
    """Compile the kernels, or load them from the cache."""
    column_spans(encode_rle(np.array([1, 2]), (2, 2)), (2, 2))


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


@kernel
def _read(text: npt.NDArray[np.int8], height: int, width: int, spans: Spans) -> int:
    """Fill spans, as far as there is room, and return how many there are."""
    count, at, position, before, last, run = 0, 0, 0, 0, 0, 0
    while at < len(text):
        length, shift, digit = 0, 0, 0x20
        while digit & 0x20 and at < len(text):
            digit = text[at] - 48
            length |= (digit & 0x1F) << shift
            at, shift = at + 1, shift + 5
        if digit & 0x10:
            length |= -1 << shift
        if run > 2:
            length += before
        end = min(max(position, position + length), height * width)  # what is written stays inside the image
        while run % 2 and position < end:
            column = position // height
            stop = min(end, (column + 1) * height)
            if count < len(spans):
                spans[count, 0] = column
                spans[count, 1], spans[count, 2] = position - column * height, stop - column * height
            count, position = count + 1, stop
        position, before, last, run = end, last, length, run + 1
    return count
