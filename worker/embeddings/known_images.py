"""What is known of images by their sources: in this process's memory, and in the object store beside the embeddings."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pydantic import ValidationError

from maskfleet.jobs.errors import NotFound, StoreMisconfigured, StoreUnavailable
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.image import ImageFacts
from maskfleet.jobs.storage import Store, source_key

#: Of the facts about one image.
MAX_FACTS_BYTES = 4096
#: About 10 MB of memory.
MAX_IMAGES = 10_000

logger = get_logger()


class KnownImages:
    """The facts about images, by tenant and by name: of a source, or of the image's bytes.

    Nothing of one tenant's is ever found for another.  store: None to keep them in memory alone.
    """

    def __init__(self, store: Store | None, *, max_images: int = MAX_IMAGES) -> None:
        self._store = store
        self._max_images = max_images
        #: With each whether the store has it, too.
        self._facts: OrderedDict[tuple[str, str], tuple[ImageFacts, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, tenant: str, name: str, etag: str = "") -> ImageFacts | None:
        """Return what is known under a name, if it was found with the same tag.

        A store that does not respond, or holds something else there, is as one that holds nothing.
        """
        with self._lock:
            facts, _ = self._facts.get((tenant, name), (None, False))
            if facts is not None:
                self._facts.move_to_end((tenant, name))
        if facts is None or facts.etag != etag:
            facts = self._read(tenant, name)
            if facts is None or facts.etag != etag:
                return None
            self._remember(tenant, name, facts, stored=True)
        return facts

    def note(self, tenant: str, name: str, facts: ImageFacts) -> None:
        """Remember facts in this process."""
        self._remember(tenant, name, facts, stored=False)

    def write(self, tenant: str, name: str, facts: ImageFacts) -> None:
        """Write facts for other workers, unless they are there.  Raises StoreUnavailable, StoreMisconfigured."""
        if self._store is None or self._facts.get((tenant, name)) == (facts, True):
            return
        body = facts.model_dump_json(exclude_none=True).encode()
        self._store.put(source_key(tenant, name), body, "application/json")
        self._remember(tenant, name, facts, stored=True)

    def forget(self, tenant: str, name: str) -> None:
        """Remove facts that turned out to be wrong.  Raises StoreUnavailable, StoreMisconfigured."""
        with self._lock:
            self._facts.pop((tenant, name), None)
        if self._store is not None:
            self._store.delete([source_key(tenant, name)])

    def _remember(self, tenant: str, name: str, facts: ImageFacts, *, stored: bool) -> None:
        with self._lock:
            self._facts[tenant, name] = facts, stored
            self._facts.move_to_end((tenant, name))
            while len(self._facts) > self._max_images:
                self._facts.popitem(last=False)

    def _read(self, tenant: str, name: str) -> ImageFacts | None:
        if self._store is None:
            return None
        key = source_key(tenant, name)
        try:
            return ImageFacts.model_validate_json(self._store.read(key, max_bytes=MAX_FACTS_BYTES))
        except NotFound:
            return None
        except (StoreUnavailable, StoreMisconfigured) as error:
            logger.warning("known_image_not_read", code=error.code)
        except ValidationError:
            logger.warning("known_image_malformed", key=key)
        return None
