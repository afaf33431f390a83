"""A device that is pretended: its tensors say that they are elsewhere, and their numbers are on the CPU.

What no machine without a GPU shows otherwise: an operation on tensors of two devices fails, as on a GPU, and what makes
the host wait for the device is counted: a copy from it, one to it that is not ``non_blocking``, and whatever depends on
its numbers, such as the indices of a boolean mask.

    with PretendDevice() as device:
        values = torch.ones(3).to(DEVICE, non_blocking=True)
        values.sum().item()
    assert device.waits == 1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

#: Torch has a device without memory; here its tensors have some.
DEVICE = torch.device("meta")
aten = torch.ops.aten
#: Their result depends on the numbers, or is one.
_WAITING = frozenset(
    {
        aten._local_scalar_dense,
        aten.item,
        aten.is_nonzero,
        aten.nonzero,
        aten.masked_select,
        aten.equal,
        aten.unique_dim,
    }
)
_COPIES = frozenset({aten._to_copy, aten.to})
#: They take indices from the host, for which they wait.
_INDEXED = frozenset({aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_})


class OnDevice(Tensor):
    """A tensor of the device.  held: its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        # Torch would not take an inference tensor for the view of another one.
        with torch.inference_mode(mode=False):
            made: OnDevice = Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=DEVICE,
            )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Makes tensors of the device where that is asked for.  waits: how often the host waited for it."""

    current: PretendDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __enter__(self) -> PretendDevice:
        PretendDevice.current = self  # for other threads, too, in which a mode is not active
        # A module that is converted gets new parameters: the numbers of those it has could not be exchanged.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        PretendDevice.current = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    tensors = [value for value in tree_flatten(given)[0] if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    to = given.get("device")
    if not there and (to is None or torch.device(to).type != DEVICE.type):
        return func(*args, **kwargs)
    packet = func.overloadpacket
    _count_waits(packet, given, tensors, there, to)
    held = {id(tensor.held): tensor for tensor in there}
    bare = {name: tree_map(_held, value) for name, value in given.items()}
    if to is not None:
        bare["device"] = torch.device("cpu")
    in_order = [argument for argument in func._schema.arguments if argument.name in bare]
    positional = [bare[argument.name] for argument in in_order if not argument.kwarg_only]
    named = {argument.name: bare[argument.name] for argument in in_order if argument.kwarg_only}
    made = func(*positional, **named)
    if packet in _COPIES and to is not None and torch.device(to).type == "cpu":
        return made
    if packet is aten.copy_ and not isinstance(given["self"], OnDevice):
        return given["self"]

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return held.get(id(value)) if id(value) in held else OnDevice(value)

    return tree_map(wrapped, made)


def _count_waits(packet: Any, given: dict[str, Any], tensors: list[Tensor], there: list[OnDevice], to: Any) -> None:
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    waits = 0
    if packet in _COPIES or packet is aten.copy_:
        leaves = bool(there) and (to is not None and torch.device(to).type == "cpu")
        leaves = leaves or (packet is aten.copy_ and not isinstance(given["self"], OnDevice))
        arrives = bool(here) and not leaves
        waits = int(leaves or (arrives and not given.get("non_blocking")))
    elif packet in _INDEXED:
        indices = [index for index in given["indices"] if index is not None]
        waits = sum(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, OnDevice) for index in indices)
        if not isinstance(given["self"], OnDevice):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    elif any(tensor.dim() for tensor in here) and there:
        raise RuntimeError(f"{packet}: expected all tensors to be on the same device")
    elif packet in _WAITING:
        waits = 1
    if PretendDevice.current is not None:
        PretendDevice.current.waits += waits


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value
