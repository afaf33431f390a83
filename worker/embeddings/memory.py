"""Embeddings in this process's memory: the latest used, as many as fit into so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

#: A tenant, and the SHA-256 of an image's bytes.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kept:
    """An embedding's tensors.  stored: whether the object store has them, too."""

    tensors: Mapping[str, Tensor]
    stored: bool

    @property
    def bytes(self) -> int:
        """What the tensors hold on to; several may be views of the same memory."""
        memory = (tensor.untyped_storage() for tensor in self.tensors.values())
        return sum({one.data_ptr(): one.nbytes() for one in memory}.values())


class EmbeddingMemory:
    """Tensors in main memory, by tenant and image.  Those that alone are larger than max_bytes are not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return self._bytes

    def find(self, key: Key) -> Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def keep(self, key: Key, kept: Kept) -> None:
        """Keep tensors, and let go of the least recently used ones that no longer fit."""
        with self._lock:
            if (old := self._kept.pop(key, None)) is not None:
                self._bytes -= old.bytes
            if kept.bytes > self._max_bytes:
                return
            self._kept[key] = kept
            self._bytes += kept.bytes
            while self._bytes > self._max_bytes:
                _, last = self._kept.popitem(last=False)
                self._bytes -= last.bytes

    def note_stored(self, key: Key) -> None:
        """Note that the object store has them now."""
        with self._lock:
            if key in self._kept:
                self._kept[key] = replace(self._kept[key], stored=True)
