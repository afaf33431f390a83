"""What is collected of a batch that couriers expand: pages in the store, and in the end files made of all of them.

A page is three objects: ``outcomes.jsonl``, a line for each image, and the images and annotations of a COCO dataset,
whose ids are already those of the whole dataset.  So the files are made by copying, and memory is bounded by a page.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
OUTCOMES, IMAGES, ANNOTATIONS = "outcomes.jsonl", "images", "annotations"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A job's part of a COCO dataset.  annotations: as its own coco.json has them; None if it has none, or is gone."""

    width: int
    height: int
    annotations: list[dict[str, object]] | None


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
    batch: BatchRecord, ended: tuple[Ended, ...], records: list[JobRecord | None], store: Store, *, coco: bool
) -> Collected:
    """Write a page about what has ended first.  records: of each one's job; None if there is none, or none any more."""
    prefix = f"{batch_prefix(batch.tenant, batch.id)}/pages/{uuid.uuid4().hex}"
    outcomes, images, annotations = bytearray(), bytearray(), bytearray()
    entries = count = failures = 0
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="collect") as pool:
        while entries < len(ended) and len(annotations) < PAGE_BYTES:
            some = slice(entries, entries + READ_AT_ONCE)
            datasets = pool.map(lambda record: _dataset(record, store) if coco else None, records[some])
            for one, record, dataset in zip(ended[some], records[some], datasets, strict=True):
                outcome = _outcome(one, record)
                outcomes += outcome.model_dump_json(exclude_none=True).encode() + b"\n"
                failures += outcome.status != Status.SUCCEEDED
                if dataset is not None:
                    images += _joint(images) + json.dumps(_image(outcome, dataset)).encode()
                    before = batch.annotations + count
                    for annotation in dataset.annotations or ():
                        count += 1
                        numbered = renumbered(annotation, before, batch.annotations + count, one.number)
                        annotations += _joint(annotations) + json.dumps(numbered).encode()
                entries += 1
    store.put(f"{prefix}/{OUTCOMES}", bytes(outcomes), "application/jsonl")
    if coco:
        store.put(f"{prefix}/{IMAGES}", bytes(images), "application/json")
        store.put(f"{prefix}/{ANNOTATIONS}", bytes(annotations), "application/json")
    job_ids = tuple(one.job_id for one in ended[:entries] if one.job_id)
    return Collected(Page(prefix, entries, failures, count), entries, job_ids)


def write_files(
    batch: BatchRecord, pages: tuple[Page, ...], store: Store, keep: Callable[[], None], *, coco: bool
) -> tuple[StoredBatchFile, ...]:
    """Write the batch's files, each from its part of all pages.  keep: called now and then; it may raise to stop."""
    token = uuid.uuid4().hex
    folder = batch_prefix(batch.tenant, batch.id)
    files = [_write(store, f"{folder}/outcomes-{token}.jsonl", OUTCOMES, "application/jsonl", _outcomes(pages), keep)]
    if coco:
        files.insert(
            0, _write(store, f"{folder}/coco-{token}.json", "coco.json", "application/json", _coco(pages), keep)
        )
    return tuple(files)


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


def _image(outcome: Outcome, dataset: Dataset) -> dict[str, object]:
    return {
        "id": outcome.number,
        "file_name": outcome.file_name,
        "width": dataset.width,
        "height": dataset.height,
        "source": outcome.source,
        "job_id": outcome.job_id,
    }


def _dataset(record: JobRecord | None, store: Store) -> Dataset | None:
    """Return the masks of a job that succeeded; None of any other, and where its result is gone."""
    if record is None or record.status is not Status.SUCCEEDED or record.result is None:
        return None
    try:
        manifest = Manifest.model_validate_json(store.read(record.result.manifest_key))
        folder = f"{result_prefix(record.tenant, record.id)}/"
        keys = [file.key for file in manifest.files if file.name == "coco.json" and file.key.startswith(folder)]
        annotations = json.loads(store.read(keys[0]))["annotations"] if keys else None
    except (NotFound, ValidationError, ValueError, KeyError, TypeError):
        logger.warning("result_not_merged", job_id=record.id)
        return Dataset(0, 0, None)
    return Dataset(manifest.image_width, manifest.image_height, annotations)
