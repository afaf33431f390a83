"""What is collected of a batch that couriers expand: pages in the store, and in the end files made of all of them.

A page is some objects: ``outcomes.jsonl``, a line for each image; the images and annotations of a COCO dataset, whose
ids are already those of the whole dataset; and the features of a GeoJSON file.  So the files are made by copying, and
memory is bounded by a page, and the outlines of one image.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import ValidationError

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.ledger.batches import Ended, Page
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.batch import BatchFailure, BatchRecord, StoredBatchFile
from maskfleet.jobs.schema.coco import renumbered
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobRecord
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, batch_prefix, result_prefix

logger = get_logger()

#: Images that are collected at once, and results that are read at once; a page of more bytes is closed earlier.
PAGE, READ_AT_ONCE, PAGE_BYTES = 200, 8, 16 * 2**20
OUTCOMES, IMAGES, ANNOTATIONS, FEATURES = "outcomes.jsonl", "images", "annotations", "features"
#: Of a job, and of the batch.
OUTLINES = "outlines.geojson"


@dataclass(frozen=True, slots=True)
class Result:
    """What a job that succeeded wrote, as far as it is merged.

    annotations: as its own coco.json has them; None if it has none, or is gone.  outlines_key: empty, likewise.
    crs: of outlines on the map, null if it has no code; none of outlines in pixels.
    """

    width: int = 0
    height: int = 0
    annotations: list[dict[str, object]] | None = None
    outlines_key: str = ""
    crs: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collected:
    """A page that is in the store.  entries: how many of what had ended it tells of.  job_ids: of those."""

    page: Page
    entries: int
    job_ids: tuple[str, ...]


class Outcome(BatchFailure):
    """One line of ``outcomes.jsonl``: how an image's job ended, also if it succeeded."""

    masks: int | None = None
    manifest_key: str | None = None


def collect_page(
    batch: BatchRecord,
    ended: tuple[Ended, ...],
    records: list[JobRecord | None],
    store: Store,
    *,
    coco: bool,
    geojson: bool = False,
) -> Collected:
    """Write a page about what has ended first.  records: of each one's job; None if there is none, or none any more."""
    prefix = f"{batch_prefix(batch.tenant, batch.id)}/pages/{uuid.uuid4().hex}"
    outcomes, images, annotations, features = bytearray(), bytearray(), bytearray(), bytearray()
    entries = count = failures = 0
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="collect") as pool:
        while entries < len(ended) and len(annotations) + len(features) < PAGE_BYTES:
            some = slice(entries, entries + READ_AT_ONCE)
            results = pool.map(lambda record: _result(record, store, coco=coco), records[some])
            for one, record, result in zip(ended[some], records[some], results, strict=True):
                outcome = _outcome(one, record)
                outcomes += outcome.model_dump_json(exclude_none=True).encode() + b"\n"
                failures += outcome.status != Status.SUCCEEDED
                if coco and result is not None:
                    images += _joint(images) + json.dumps(_image(outcome, result)).encode()
                    before = batch.annotations + count
                    for annotation in result.annotations or ():
                        count += 1
                        numbered = renumbered(annotation, before, batch.annotations + count, one.number)
                        annotations += _joint(annotations) + json.dumps(numbered).encode()
                if geojson and result is not None and result.outlines_key:
                    for feature in _features(result.outlines_key, outcome, result.crs, store):
                        features += _joint(features) + feature
                entries += 1
                if len(features) >= PAGE_BYTES:
                    break
    store.put(f"{prefix}/{OUTCOMES}", bytes(outcomes), "application/jsonl")
    if coco:
        store.put(f"{prefix}/{IMAGES}", bytes(images), "application/json")
        store.put(f"{prefix}/{ANNOTATIONS}", bytes(annotations), "application/json")
    if features:
        store.put(f"{prefix}/{FEATURES}", bytes(features), "application/json")
    job_ids = tuple(one.job_id for one in ended[:entries] if one.job_id)
    return Collected(Page(prefix, entries, failures, count), entries, job_ids)


def write_files(
    batch: BatchRecord,
    pages: tuple[Page, ...],
    store: Store,
    keep: Callable[[], None],
    *,
    coco: bool,
    geojson: bool = False,
) -> tuple[StoredBatchFile, ...]:
    """Write the batch's files, each from its part of all pages.  keep: called now and then; it may raise to stop."""
    token = uuid.uuid4().hex
    folder = batch_prefix(batch.tenant, batch.id)
    wanted: list[tuple[str, str, str, Iterable[_Part]]] = []
    if coco:
        wanted.append((f"coco-{token}.json", "coco.json", "application/json", _coco(pages)))
    if geojson:
        wanted.append((f"outlines-{token}.geojson", OUTLINES, "application/geo+json", _geojson(pages, store)))
    wanted.append((f"outcomes-{token}.jsonl", OUTCOMES, "application/jsonl", _outcomes(pages)))
    return tuple(_write(store, f"{folder}/{key}", name, type_, parts, keep) for key, name, type_, parts in wanted)


#: What a file is made of: bytes, or the key of an object to be copied.
_Part = bytes | str


def _write(
    store: Store, key: str, name: str, content_type: str, parts: Iterable[_Part], keep: Callable[[], None]
) -> StoredBatchFile:
    with store.writing(key, content_type) as file:
        for part in parts:
            keep()
            for chunk in store.chunks(part) if isinstance(part, str) else (part,):
                file.write(chunk)
    return StoredBatchFile(name=name, key=key, size=file.size, content_type=content_type)


def _outcomes(pages: tuple[Page, ...]) -> Iterable[_Part]:
    return (f"{page.prefix}/{OUTCOMES}" for page in pages)


def _coco(pages: tuple[Page, ...]) -> Iterable[_Part]:
    yield b'{"info": {"description": "Masks by Segment Anything, made with maskfleet"},\n"licenses": [],\n'
    yield b'"categories": [{"id": 1, "name": "object", "supercategory": ""}],\n"images": [\n'
    yield from _joined(page.prefix + "/" + IMAGES for page in pages if page.jobs > page.failures)
    yield b'\n],\n"annotations": [\n'
    yield from _joined(page.prefix + "/" + ANNOTATIONS for page in pages if page.annotations)
    yield b"\n]}\n"


def _geojson(pages: tuple[Page, ...], store: Store) -> Iterable[_Part]:
    yield b'{"type": "FeatureCollection",\n"features": [\n'
    keys = (f"{page.prefix}/{FEATURES}" for page in pages)
    yield from _joined(key for key in keys if store.head(key) is not None)
    yield b"\n]}\n"


def _joined(keys: Iterable[str]) -> Iterable[_Part]:
    for number, key in enumerate(keys):
        if number:
            yield b",\n"
        yield key


def _joint(text: bytearray) -> bytes:
    return b",\n" if text else b""


def _outcome(one: Ended, record: JobRecord | None) -> Outcome:
    if not one.job_id:
        return Outcome.model_validate_json(one.json)
    if record is None:
        return Outcome(
            number=one.number,
            job_id=one.job_id,
            status="deleted",
            code="job_not_found",
            detail="The job was deleted before its outcome was noted.",
        )
    return Outcome(
        number=one.number,
        job_id=record.id,
        status=str(record.status),
        source=record.source or None,
        file_name=record.file_name or None,
        code=record.error.code if record.error else None,
        detail=record.error.detail if record.error else None,
        masks=record.result.masks if record.result else None,
        manifest_key=record.result.manifest_key if record.result else None,
    )


def _image(outcome: Outcome, result: Result) -> dict[str, object]:
    return {
        "id": outcome.number,
        "file_name": outcome.file_name,
        "width": result.width,
        "height": result.height,
        "source": outcome.source,
        "job_id": outcome.job_id,
    }


def _result(record: JobRecord | None, store: Store, *, coco: bool) -> Result | None:
    """Return what a job that succeeded wrote; None of any other, and an empty one where that is gone."""
    if record is None or record.status is not Status.SUCCEEDED or record.result is None:
        return None
    try:
        manifest = Manifest.model_validate_json(store.read(record.result.manifest_key))
        key = _key_of("coco.json", manifest, record) if coco else ""
        annotations = json.loads(store.read(key))["annotations"] if key else None
    except (NotFound, ValidationError, ValueError, KeyError, TypeError):
        logger.warning("result_not_merged", job_id=record.id)
        return Result()
    place = manifest.georeference
    crs = {"crs": place.crs} if place is not None and place.transform is not None else {}
    return Result(manifest.image_width, manifest.image_height, annotations, _key_of(OUTLINES, manifest, record), crs)


def _key_of(name: str, manifest: Manifest, record: JobRecord) -> str:
    folder = f"{result_prefix(record.tenant, record.id)}/"
    return next((file.key for file in manifest.files if file.name == name and file.key.startswith(folder)), "")


def _features(key: str, outcome: Outcome, crs: Mapping[str, str | None], store: Store) -> Iterator[bytes]:
    """Yield the outlines of a job, each with the image that it is of; no more of them where the file is gone.

    A job's file has a line for each mask, so only one of them is parsed at a time.
    """
    about = {"image_id": outcome.number, "file_name": outcome.file_name, "source": outcome.source}
    try:
        for line in _lines(store.chunks(key)):
            if line.startswith(b'{"type": "Feature",'):
                feature = json.loads(line.rstrip(b",\r"))
                feature["id"] = f"{outcome.number}-{feature['id']}"
                feature["properties"] |= {**about, "job_id": outcome.job_id, **crs}
                yield json.dumps(feature, separators=(",", ":")).encode()
    except (NotFound, ValueError, KeyError, TypeError):
        logger.warning("result_not_merged", job_id=outcome.job_id)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *whole, rest = rest.split(b"\n")
            yield from map(bytes, whole)
    yield bytes(rest)
