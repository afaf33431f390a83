"""Compiled loops over pixels, cached next to the code or in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])  # Any: a loop takes any arguments


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call, to run without the interpreter and the GIL.

    Copy arrays value by value: the assignment of a slice compiles for seconds, with the text of an error about shapes.
    The compiled code is cached in ``__pycache__``, else in the user's cache folder or in NUMBA_CACHE_DIR.  If none of
    them is writable, as in a container without a home, each process compiles again, which takes seconds at its start.
    """
    return _compiled(function, inlined=False)


def inlined(function: _Function) -> _Function:
    """Compile a part of kernels into each place where one calls it.

    A call passes every array's address, sizes and strides, one by one; with an image's tables that takes as long as
    some hundred values.
    """
    return _compiled(function, inlined=True)


def _compiled(function: _Function, *, inlined: bool) -> _Function:
    try:
        compiled = njit(nogil=True, cache=True, error_model="numpy", forceinline=inlined)(function)
    except RuntimeError:  # "cannot cache function …: no locator available for file …"
        compiled = njit(nogil=True, error_model="numpy", forceinline=inlined)(function)
    return cast("_Function", compiled)


@intrinsic
def _fma(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:

    def build(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), build


#: Returns a · b + c with a single rounding, in float32; only for use in a kernel.
fused_multiply_add = cast("Callable[[float, float, float], float]", _fma)
