"""The embeddings of images that were encoded before: in this process's memory, then in the object store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # what families prepare has no common type

import torch
from torch import Tensor

from maskfleet.jobs.errors import NotFound, StoreMisconfigured, StoreUnavailable
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.record import EmbeddingOrigin
from maskfleet.jobs.storage import Store, embedding_key
from maskfleet.worker.embeddings.file import FileKind, NotAnEmbedding, read_file, write_file
from maskfleet.worker.embeddings.memory import EmbeddingMemory, Kept
from maskfleet.worker.embeddings.revision import embedding_revision
from maskfleet.worker.sam.embedding import Embedding, frame_of
from maskfleet.worker.sam.model import SegmentationModel

logger = get_logger()


class EmbeddingCache:
    """The embeddings of one model, by tenant and by the image's bytes; of whole images, not of crops.

    store: None to keep them in memory alone.  max_bytes: of memory, on the host whatever the device.
    """

    def __init__(self, model: SegmentationModel, store: Store | None, max_bytes: int) -> None:
        self.model = model
        self.store = store
        self.memory = EmbeddingMemory(max_bytes)
        half = None if model.family.encoder_dtype is torch.float32 else model.family.encoder_dtype
        self.kind = FileKind(embedding_revision(model), model.family.embedding_shapes, half)

    def of(self, tenant: str, sha256: str, *, ask_store: bool) -> ImageEmbedding:
        """Return the place of one image's embedding.

        sha256: of the image's bytes, computed from them.  ask_store: whether there may be one in the store.
        """
        return ImageEmbedding(self, tenant, sha256, ask_store=ask_store)


class ImageEmbedding:
    """The place of one image's embedding, for one job."""

    def __init__(self, cache: EmbeddingCache, tenant: str, sha256: str, *, ask_store: bool) -> None:
        self._cache = cache
        self._tenant = tenant
        self._sha256 = sha256
        self._ask_store = ask_store
        self._key = (tenant, sha256)
        self._unwritten: Mapping[str, Tensor] | None = None

    def find(self, size_wh: tuple[int, int]) -> tuple[Embedding, EmbeddingOrigin] | None:
        """Return the embedding that an earlier job left, if there is one, on the model's device."""
        kept, origin = self._cache.memory.find(self._key), EmbeddingOrigin.MEMORY
        if kept is None:
            tensors, origin = self._read(), EmbeddingOrigin.STORE
            if tensors is None:
                return None
            kept = Kept(tensors, stored=True)
            self._cache.memory.keep(self._key, kept)
        if not kept.stored:
            self._unwritten = kept.tensors
        frame = frame_of((size_wh[1], size_wh[0]), self._cache.model.family.preprocessing)
        return Embedding(self._prepared(kept) if kept.prepared is None else kept.prepared, frame), origin

    def keep(self, embedding: Embedding) -> None:
        """Keep an embedding that was computed: in memory, and for ``write``."""
        model = self._cache.model
        named = model.family.named(embedding)
        # On a GPU the next image may be encoded into the same memory.
        self._unwritten = {name: tensor.detach().cpu() for name, tensor in named.items()}
        self._cache.memory.keep(self._key, Kept(self._unwritten, stored=False))
        if model.device.type == "cpu":
            self._cache.memory.keep_prepared(self._key, embedding.values)

    def write(self) -> None:
        """Write to the store what it does not have yet, as far as this process knows.

        Raises StoreUnavailable, StoreMisconfigured.
        """
        if self._unwritten is None or self._cache.store is None:
            return
        try:
            data = write_file(self._unwritten, self._cache.kind, self._tenant, self._sha256)
        except NotAnEmbedding as error:
            logger.warning("embedding_not_written", reason=str(error))
            return
        # Two workers may write the same image's at once: either one's is as good.
        self._cache.store.put(self._object, data, "application/octet-stream")
        self._cache.memory.note_stored(self._key)

    def _prepared(self, kept: Kept) -> Any:
        """Prepare a kept embedding for its decoder, on the model's device, and keep that for the next click."""
        family, device = self._cache.model.family, self._cache.model.device
        values = family.from_named({name: tensor.to(device) for name, tensor in kept.tensors.items()})
        with torch.inference_mode():
            prepared = family.prepared(values)
        self._cache.memory.keep_prepared(self._key, prepared)
        return prepared

    @property
    def _object(self) -> str:
        return embedding_key(self._tenant, self._cache.kind.revision, self._sha256)

    def _read(self) -> Mapping[str, Tensor] | None:
        """Read the store.  What is not there, cannot be read or makes no sense is computed again."""
        if self._cache.store is None or not self._ask_store:
            return None
        kind = self._cache.kind
        try:
            data = self._cache.store.read(self._object, max_bytes=kind.max_bytes)
            return read_file(data, kind, self._tenant, self._sha256)
        except NotFound:
            return None
        except (StoreUnavailable, StoreMisconfigured) as error:
            logger.warning("embedding_not_read", code=error.code)
        except NotAnEmbedding as error:
            logger.warning("embedding_malformed", key=self._object, reason=str(error))
        return None
