"""Embeddings in this process's memory: the latest used, as many as fit into so many bytes.

Of the very latest, what a decoder has prepared from it stays as well: several times as large, and of use only while the
clicks on that image go on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any  # what families prepare has no common type

from torch import Tensor

#: A tenant, and the SHA-256 of an image's bytes.
Key = tuple[str, str]
#: The part of the memory that what is prepared may take: embeddings that it displaces cost far more to make again.
_PREPARED_SHARE = 1 / 4


@dataclass(frozen=True, slots=True)
class Kept:
    """An embedding's tensors.

    stored: whether the object store has them, too.  prepared: what a family's ``prepared`` made of them, on its device;
    None if that is not kept.
    """

    tensors: Mapping[str, Tensor]
    stored: bool
    prepared: Any = None

    @property
    def bytes(self) -> int:
        """What all of it holds on to, on whatever device; several tensors may be views of the same memory."""
        memory = (tensor.untyped_storage() for tensor in _tensors_in([*self.tensors.values(), self.prepared]))
        return sum({(one.device, one.data_ptr()): one.nbytes() for one in memory}.values())


class EmbeddingMemory:
    """Tensors in main memory, by tenant and image.  Those that alone are larger than max_bytes are not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._latest: Key | None = None
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return self._bytes

    def find(self, key: Key) -> Kept | None:
        """Return what is kept of an image, and let go of what was prepared of another one."""
        with self._lock:
            self._turn_to(key)
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def keep(self, key: Key, kept: Kept) -> None:
        """Keep tensors, and let go of the least recently used ones that no longer fit."""
        with self._lock:
            self._turn_to(key)
            self._put(key, kept)

    def keep_prepared(self, key: Key, prepared: Any) -> None:
        """Keep what was prepared of an embedding until another one is asked for, if there is room for it."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or key != self._latest:
                return
            more = replace(kept, prepared=prepared)
            if more.bytes - kept.bytes <= self._max_bytes * _PREPARED_SHARE:
                self._put(key, more)

    def note_stored(self, key: Key) -> None:
        """Note that the object store has them now."""
        with self._lock:
            if key in self._kept:
                self._kept[key] = replace(self._kept[key], stored=True)

    def _turn_to(self, key: Key) -> None:
        latest = self._latest
        if latest is not None and latest != key and latest in self._kept:
            kept = self._kept[latest]
            self._bytes -= kept.bytes
            self._kept[latest] = replace(kept, prepared=None)  # in its place among those used earlier
            self._bytes += self._kept[latest].bytes
        self._latest = key

    def _put(self, key: Key, kept: Kept) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self._bytes -= old.bytes
        if kept.bytes > self._max_bytes:
            return
        self._kept[key] = kept
        self._bytes += kept.bytes
        while self._bytes > self._max_bytes:
            _, last = self._kept.popitem(last=False)
            self._bytes -= last.bytes


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in dataclasses, lists and tuples, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors_in(getattr(value, field.name))
