"""Tables in double precision, and back: where a few sums decide about every mask, they are worth it.

The fast decoder sums the same terms as the library in another order, so the two differ by what each rounds.  A mask has
more pixels on its threshold the larger its photograph is, and each of them falls to one side or the other by such a
difference.  Two places are cheap enough to round no more than once: the tables of an image, made once for all prompts,
and the last reading of the tokens whose masks are wanted.  With both of them in double precision the logits are as near
to the decoder's in double precision as the library's (``tests/worker/test_precision.py``, decision 0032).
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Tables = TypeVar("Tables")


def in_precision(tables: Tables, dtype: torch.dtype) -> Tables:
    """Give tensors, dataclasses of tensors and tuples of them in a precision; what has it already is not copied."""
    given: Any = tables  # Any: what it is shows below only
    made = given
    if isinstance(given, Tensor):
        made = given.to(dtype)
    elif isinstance(given, tuple):
        made = tuple(in_precision(one, dtype) for one in given)
    elif is_dataclass(given):
        values = {one.name: in_precision(getattr(given, one.name), dtype) for one in fields(given)}
        made = replace(given, **values)  # type: ignore[type-var]  # is_dataclass admits classes, too
    return cast("Tables", made)
