"""A prompt's ``mask_input``: low-resolution logits that an earlier job gave out as ``logits``."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt

from maskfleet.jobs.errors import InvalidPrompt

#: Their folder in a result.
LOGITS_FOLDER = "logits/"
#: A file's bytes: four times a mask of 256 × 256 in float32, which is the largest that any published model takes.
MAX_FILE_BYTES = 2**20


def read_logits(data: bytes, prompt: int) -> npt.NDArray[np.floating]:
    """Read an .npy file of one mask's logits, float16 or float32, (h, w) or (1, h, w).  Returns (h, w).

    The header's shape must match the bytes present: numpy would first allocate the memory that it declares.
    Raises InvalidPrompt: ``invalid_mask_input``.
    """
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_column, dtype = read_header(buffer)
    except (ValueError, KeyError, EOFError, OverflowError, TypeError, SyntaxError) as error:
        raise _invalid(prompt, "is not an .npy file") from error
    if dtype not in (np.dtype("<f2"), np.dtype("<f4")):
        raise _invalid(prompt, f"holds {dtype}; send little-endian float16 or float32")
    values = data[buffer.tell() :]
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(values):
        raise _invalid(prompt, "does not have the number of bytes that its header declares")
    logits: npt.NDArray[np.floating] = np.frombuffer(values, dtype).reshape(shape, order="F" if by_column else "C")
    if not np.isfinite(logits).all():
        raise _invalid(prompt, "holds NaN or infinite values")
    if logits.ndim == 3 and len(logits) == 1:
        logits = logits[0]
    if logits.ndim != 2:
        raise _invalid(prompt, f"has {logits.ndim} dimensions; send one mask of shape (h, w)")
    return logits.copy()  # the file's bytes are read-only, and torch needs writable memory


def _invalid(prompt: int, fault: str) -> InvalidPrompt:
    return InvalidPrompt("invalid_mask_input", f"Prompt {prompt}: the mask_input {fault}.")
