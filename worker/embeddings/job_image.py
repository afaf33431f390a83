"""A job's image, fetched and decoded no sooner than it is needed, and not at all if what is known of it suffices."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import requests

from maskfleet.jobs.errors import InvalidImage, SourceUnavailable
from maskfleet.jobs.schema.image import ImageFacts, content_name, source_name
from maskfleet.jobs.schema.record import ImageContent, ImageGeoreference, ImageValues
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.storage import FetchedObject, Store
from maskfleet.worker.embeddings.known_images import KnownImages
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.image.values import Pixels, ValueRange
from maskfleet.worker.sources import fetch_image, image_etag
from maskfleet.worker.stages import StageName, stage


def recorded(georeference: Georeference) -> ImageGeoreference:
    """Return a georeference as facts and the manifest keep it."""
    return ImageGeoreference(
        crs=f"EPSG:{georeference.epsg}" if georeference.epsg else None,
        transform=georeference.transform,
        geo_keys=dict(georeference.geo_keys),
        note=georeference.note or None,
    )


def georeference_from(record: ImageGeoreference) -> Georeference:
    """Return a georeference that was recorded."""
    return Georeference(record.transform, tuple(record.geo_keys.items()), record.note or "")


@dataclass(frozen=True, slots=True)
class ImageReader:
    """How one job's image is read.  check: called while it is decoded; may raise to stop that."""

    source: ImageSource
    tenant: str
    store: Store
    egress: requests.Session
    sandbox: Sandbox
    settings: WorkerSettings
    check: Callable[[], None]

    def etag(self) -> str:
        """Return the tag of an object in a bucket now; empty for any other source."""
        return image_etag(self.source, self.tenant, self.store, self.settings)

    def fetch(self) -> FetchedObject:
        with stage(StageName.FETCH):
            return fetch_image(self.source, self.tenant, self.store, self.egress, self.settings)

    def decode(self, data: bytes) -> Photo:
        with stage(StageName.DECODE_IMAGE):
            return self.sandbox.decode(data, self.settings.max_image_pixels, self.check)


class JobImage:
    """An image, with the attributes of a Photo."""

    def __init__(self, reader: ImageReader, known: KnownImages) -> None:
        """Find out what is known of the image; fetch and decode it if nothing is.

        Raises InvalidImage (``image_changed`` if it is not the one that the spec pins by its sha256), and what fetching
        and decoding raise.
        """
        self._reader = reader
        self._known = known
        self._fetched: FetchedObject | None = None
        self._photo: Photo | None = None
        #: What other workers may know of it, without its pixels.
        self.facts_by_name: dict[str, ImageFacts] = {}
        #: How long fetching and decoding took.
        self.fetch_s = 0.0
        #: Whether an earlier job left its facts, and so perhaps its embedding.
        self.was_known = True
        with self._timed():
            self.facts = self._known_by_source() or self._known_by_content() or self._decoded()
        pinned = reader.source.sha256
        if pinned is not None and pinned != self.facts.sha256:
            raise InvalidImage(
                "image_changed",
                "The image is no longer the one that was named: its bytes have another SHA-256. Make it known anew, or "
                "name the image itself.",
            )

    @property
    def tenant(self) -> str:
        return self._reader.tenant

    @property
    def sha256(self) -> str:
        return self.facts.sha256

    @property
    def content(self) -> ImageContent:
        return self.facts.content

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.facts.size_wh

    @property
    def values(self) -> ValueRange | None:
        values = self.facts.values
        return ValueRange(values.low, values.high, values.stretched) if values else None

    @property
    def georeference(self) -> Georeference | None:
        return georeference_from(self.facts.georeference) if self.facts.georeference else None

    @property
    def pixels(self) -> Pixels:
        """(H, W, 3) RGB; fetched and decoded when they are first asked for."""
        if self._photo is None:
            with self._timed():
                data = self._fetch().data
                self._check_unchanged(hashlib.sha256(data).hexdigest() == self.sha256)
                self._photo = self._reader.decode(data)
                self._check_unchanged(self._photo.size_wh == self.size_wh)
                self._fetched = None  # up to max_image_bytes
        return self._photo.pixels

    def _known_by_source(self) -> ImageFacts | None:
        name = source_name(self._reader.source)
        return self._find(name, self._reader.etag()) if name else None

    def _known_by_content(self) -> ImageFacts | None:
        fetched = self._fetch()
        sha256 = hashlib.sha256(fetched.data).hexdigest()
        facts = self._find(content_name(sha256))
        if facts is not None and facts.sha256 == sha256:
            self._learn_source(facts, fetched.etag)
            return facts
        return None

    def _decoded(self) -> ImageFacts:
        fetched = self._fetch()
        photo = self._photo = self._reader.decode(fetched.data)
        self._fetched = None  # up to max_image_bytes, not needed any more
        self.was_known = False
        facts = ImageFacts(
            sha256=hashlib.sha256(fetched.data).hexdigest(),
            file_bytes=len(fetched.data),
            width=photo.size_wh[0],
            height=photo.size_wh[1],
            values=ImageValues(**asdict(photo.values)) if photo.values else None,
            georeference=recorded(photo.georeference) if photo.georeference else None,
            georeference_read=True,
        )
        self._learn(content_name(facts.sha256), facts)
        self._learn_source(facts, fetched.etag)
        return facts

    def _learn_source(self, facts: ImageFacts, etag: str) -> None:
        source = self._reader.source
        name = source_name(source)
        if name is not None and (etag or source.s3_uri is None):  # without a tag, a change would not be noticed
            self._learn(name, facts.model_copy(update={"etag": etag if source.s3_uri else ""}))

    def _learn(self, name: str, facts: ImageFacts) -> None:
        self._known.note(self.tenant, name, facts)
        self.facts_by_name[name] = facts

    def _find(self, name: str, etag: str = "") -> ImageFacts | None:
        """Return facts unless the image would be refused today; then it is read, and refused with the right words."""
        settings, facts = self._reader.settings, self._known.find(self.tenant, name, etag)
        if facts is None or not facts.georeference_read or facts.file_bytes > settings.max_image_bytes:
            return None
        if facts.width * facts.height > settings.max_image_pixels:
            return None
        self.facts_by_name[name] = facts
        return facts

    def _fetch(self) -> FetchedObject:
        if self._fetched is None:
            self._fetched = self._reader.fetch()
        return self._fetched

    def _check_unchanged(self, unchanged: bool) -> None:
        """Raise SourceUnavailable if the bytes are not those that the facts are of: another attempt starts anew."""
        if unchanged:
            return
        if name := source_name(self._reader.source):
            self._known.forget(self.tenant, name)
        self._known.forget(self.tenant, content_name(self.sha256))
        raise SourceUnavailable("The image changed while the job ran.")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.fetch_s += time.monotonic() - started
