"""The file of an embedding: safetensors, with what it is the embedding of in its metadata.

A tensor keeps its layout in memory, since the order of a sum depends on it: masks made from the file are bit for bit
those made from what was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from maskfleet.worker.embeddings.revision import bytes_of

#: Of the longest header: a few tensors and some lines of metadata.  The library itself accepts 100 MB.
MAX_HEADER_BYTES = 8192
_FORMAT = "1"


class NotAnEmbedding(ValueError):
    """A file is damaged, or not the embedding that was asked for."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What one model's files hold.

    shapes: of each tensor, by name.  half: the encoder's precision if it is not float32; a tensor whose values all have
    that precision is stored in it.
    """

    revision: str
    shapes: Mapping[str, tuple[int, ...]]
    half: torch.dtype | None

    @property
    def max_bytes(self) -> int:
        """The size of the largest file."""
        return 8 + MAX_HEADER_BYTES + sum(4 * math.prod(shape) for shape in self.shapes.values())


def write_file(named: Mapping[str, Tensor], kind: FileKind, tenant: str, sha256: str) -> bytes:
    """Serialise an embedding's tensors, float32 and on the CPU.  sha256: of the image's bytes.

    Raises NotAnEmbedding for tensors that ``read_file`` would not return, such as any with NaN.
    """
    orders = {name: _order(tensor) for name, tensor in named.items()}
    laid_out = {name: _smallest(tensor.permute(orders[name]), kind.half) for name, tensor in named.items()}
    metadata = {
        **_identity(kind, tenant, sha256),
        "orders": json.dumps(orders),
        "digest": _digest(laid_out),
    }
    data = save(laid_out, metadata)
    read_file(data, kind, tenant, sha256)  # so that what is written is known to be of use
    return data


def read_file(data: bytes, kind: FileKind, tenant: str, sha256: str) -> dict[str, Tensor]:
    """Read an embedding's tensors as float32.  Raises NotAnEmbedding."""
    metadata = _metadata(data)
    expected = _identity(kind, tenant, sha256)
    if {name: metadata.get(name) for name in expected} != expected:
        raise NotAnEmbedding("it is the embedding of something else")
    try:
        stored = load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise NotAnEmbedding("it is not a safetensors file") from error
    orders = _orders(metadata)
    if not stored.keys() == orders.keys() == kind.shapes.keys():
        raise NotAnEmbedding("it holds other tensors")
    if metadata.get("digest") != _digest(stored):
        raise NotAnEmbedding("its values were damaged")
    return {name: _restored(stored[name], orders[name], kind.shapes[name], kind.half) for name in kind.shapes}


def _identity(kind: FileKind, tenant: str, sha256: str) -> dict[str, str]:
    return {"format": _FORMAT, "revision": kind.revision, "tenant": tenant, "image": sha256}


def _restored(stored: Tensor, order: list[int], shape: tuple[int, ...], half: torch.dtype | None) -> Tensor:
    if stored.dtype not in (torch.float32, half) or sorted(order) != list(range(len(shape))):
        raise NotAnEmbedding("a tensor has another type")
    if tuple(stored.shape) != tuple(shape[axis] for axis in order):
        raise NotAnEmbedding("a tensor has another shape")
    tensor = stored.to(torch.float32)
    if not torch.isfinite(tensor).all():
        raise NotAnEmbedding("it holds NaN or infinite values")
    return tensor.permute([order.index(axis) for axis in range(len(shape))])


def _order(tensor: Tensor) -> list[int]:
    """Return the axes from the one with the widest stride to that of neighbours in memory."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))


def _smallest(tensor: Tensor, half: torch.dtype | None) -> Tensor:
    """Return the tensor, contiguous, in half precision if it loses nothing by it."""
    if half is not None and torch.equal(tensor.to(half).to(torch.float32), tensor):
        tensor = tensor.to(half)
    return tensor.contiguous()


def _metadata(data: bytes) -> dict[str, Any]:  # Any: JSON
    """Return the metadata in a file's header, whose length is checked before the library reads it."""
    if len(data) < 8:
        raise NotAnEmbedding("it is too short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise NotAnEmbedding("its header is too long")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAnEmbedding("its header is malformed") from error
    if not isinstance(metadata, dict):
        raise NotAnEmbedding("its header is malformed")
    return metadata


def _orders(metadata: Mapping[str, Any]) -> dict[str, list[int]]:
    try:
        orders = {str(name): [int(axis) for axis in order] for name, order in json.loads(metadata["orders"]).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotAnEmbedding("its header is malformed") from error
    return orders


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
