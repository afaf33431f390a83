"""The encoder compiled by ``torch.compile``: its small operations fused, without Python between them.

The input has the same shape for every image, so it is compiled once, when the model is loaded.  Compiled, a float32
encoder rounds its last digits in another way.  What cannot be compiled here, or computes something else, is left
uncompiled, and the log says so.  See docs/decisions/0051-the-compiled-encoder.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from maskfleet.jobs.logs import get_logger

logger = get_logger()

#: An encoder: takes pixel values (1, 3, h, w), returns a tensor, or tensors in lists and tuples.
Encoder = Callable[[Tensor], Any]
Compile = Literal["off", "encoder", "encoder_graphs"]

#: torch's names.  CUDA graphs replay all of the encoder's kernels in a single launch.
_MODES: dict[Compile, str] = {"encoder": "default", "encoder_graphs": "reduce-overhead"}
#: CUDA graphs are recorded by the second call and replayed from the third on.
_WARM_UPS = 3
#: How far embeddings may be from the exact ones, as a share of their norm: so far, in float32 some 1e-6 are expected,
#: and in half precision, besides, so many times as far as uncompiled.
_MOST_OFF, _MOST_TIMES_OFF = 1e-3, 2.0


def compile_encoder(encode: Encoder, values: Tensor, compile_as: Compile) -> Encoder | None:
    """Compile an encoder for the modes of autocast and inference around the call, and compare it with what it was.

    values: pixel values of the only shape and memory layout that will be encoded.
    Returns None, after a warning, if it cannot be compiled or if its embeddings are too far from the uncompiled ones.
    """
    started = time.monotonic()
    run = _Compiled(encode, compile_as)
    try:
        for _ in range(_WARM_UPS):
            found = run.compiling(values)
        plain = encode(values)
        with torch.autocast(values.device.type, enabled=False):
            exact = encode(values)
        off, allowed = _distance(found, exact), _MOST_OFF + _MOST_TIMES_OFF * _distance(plain, exact)
    except Exception as error:  # noqa: BLE001  compilers fail in many ways, and the encoder works without them
        reason = str(error).strip().partition("\n")[0][:300]
        logger.warning("encoder_not_compiled", code=type(error).__name__, reason=reason)
        return None
    if not off <= allowed:  # also if it is NaN
        reason = f"Compiled, they are off by {off:.1e} of their norm; {allowed:.1e} are allowed."
        logger.warning("encoder_not_compiled", code="other_embeddings", reason=reason)
        return None
    logger.info("encoder_compiled", compile=compile_as, compile_s=round(time.monotonic() - started, 1), off=off)
    return run


class _Compiled:
    """A compiled encoder.  Called with what would have to be compiled anew, it runs uncompiled instead."""

    def __init__(self, encode: Encoder, compile_as: Compile) -> None:
        self._encode = torch.compile(encode, dynamic=False, mode=_MODES[compile_as])
        #: The next call overwrites what lies in the memory of CUDA graphs.
        self._copies_output = compile_as == "encoder_graphs"

    def compiling(self, values: Tensor) -> Any:
        """Encode, and compile where that has not been done."""
        found = self._encode(values)
        return _copied(found) if self._copies_output else found

    def __call__(self, values: Tensor) -> Any:
        # No job should wait for the compiler.
        with torch.compiler.set_stance("eager_on_recompile"):
            return self.compiling(values)


def _copied(values: Any) -> Any:
    if isinstance(values, list | tuple):
        return type(values)(_copied(value) for value in values)
    return values.clone()


def _distance(found: Any, expected: Any) -> float:
    """Return the largest distance between corresponding tensors, as a share of the expected one's norm."""
    if isinstance(expected, list | tuple):
        return max(_distance(one, other) for one, other in zip(found, expected, strict=True))
    return float((found.double() - expected.double()).norm() / expected.double().norm())
