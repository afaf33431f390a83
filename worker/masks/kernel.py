"""Loops over pixels, compiled: once on a machine, kept beside the code or where the user's caches are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])  # Any: whatever the loop takes


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call, to run without the interpreter and its lock.

    What was compiled is kept in ``__pycache__``, else in the user's cache folder or in NUMBA_CACHE_DIR.  Where none can
    be written, as in a container without a home, it is compiled anew in each process: some seconds at its start.
    """
    try:
        compiled = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # "cannot cache function …: no locator available for file …"
        compiled = njit(nogil=True, error_model="numpy")(function)
    return cast("_Function", compiled)


@intrinsic
def _fma(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:

    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), build


#: Gives a · b + c with one rounding, in float32; only inside a kernel.
fused_multiply_add = cast("Callable[[float, float, float], float]", _fma)
