"""Tables in double precision, and back: where a few sums decide about every mask, they are worth it.

The fast decoder sums the same terms as the library in another order, so the two differ by what each rounds.  A mask has
more pixels on its threshold the larger its photograph is, and each of them falls to one side or the other by such a
difference.  Two places are cheap enough to round no more than once: the tables of an image, made once for all prompts,
and the last reading of the tokens whose masks are wanted.  With both of them in double precision the logits are as near
to the decoder's in double precision as the library's (``tests/worker/test_precision.py``, decision 0032).
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Tables = TypeVar("Tables")


def in_precision(tables: Tables, dtype: torch.dtype) -> Tables:
    """Give tensors, dataclasses of tensors and tuples of them in a precision; what has it already is not copied."""
    made: Any = tables
    if isinstance(tables, Tensor):
        made = tables.to(dtype)
    elif isinstance(tables, tuple):
        made = tuple(in_precision(one, dtype) for one in tables)
    elif is_dataclass(tables):
        made = type(tables)(**{one.name: in_precision(getattr(tables, one.name), dtype) for one in fields(tables)})
    return made
