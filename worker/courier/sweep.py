"""The sweep: removes objects under ``results/`` and ``batches/`` that no record refers to, and old ones of images.

    an ended job's objects that its manifest does not list      from attempts that lost or were cut off
    all objects of a job whose record no longer exists          its retention is over, or it was deleted meanwhile
    what was collected of a batch whose record is gone         the same
    what is known of images, for as long as records are kept    it is only there to save work

A job's objects are removed only after a grace time, and never while it is queued or running.  A job that is retried
between the check and the removal loses nothing: each attempt writes to its own folder, so whatever was listed
before belongs to older attempts, and what a manifest lists stays.

CPU only, and safe to run alongside everything else.  One runs at a time, to spare the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Self

from pydantic import ValidationError

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import JobEnd
from maskfleet.jobs.ledger.sweeps import SweepTurns
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.wire import BATCH_ID, JOB_ID
from maskfleet.jobs.settings import CourierSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import DELETED_AT_ONCE, EMBEDDINGS, ListedObject, Store

#: Jobs whose records are asked for in one round trip.
JOBS_AT_ONCE = 200
_FOLDER = re.compile(rf"results/([^/]+)/({JOB_ID})/")
_BATCH_FOLDER = re.compile(rf"batches/([^/]+)/({BATCH_ID})/")

logger = get_logger()


@dataclass(frozen=True, slots=True)
class Leftover:
    """Objects of one job that no record refers to, or old ones about images.  why: for people."""

    folder: str
    why: str
    objects: tuple[ListedObject, ...]

    @property
    def size(self) -> int:
        """The total size, in bytes."""
        return sum(found.size for found in self.objects)


class Sweep:
    """A pass through the results of all jobs."""

    def __init__(
        self,
        ledger: Ledger,
        turns: SweepTurns,
        store: Store,
        *,
        batches: Batches,
        retention_s: float,
        grace_s: float,
    ) -> None:
        """retention_s: how long records outlive their jobs.  grace_s: how long unreferenced objects are kept."""
        self._ledger = ledger
        self._batches = batches
        self._turns = turns
        self._store = store
        self._retention_ms, self._grace_ms = retention_s * 1000, grace_s * 1000

    @classmethod
    def from_settings(cls, settings: CourierSettings) -> Self:
        client = connect(settings)
        ledger, turns = Ledger(client, settings.retention_s), SweepTurns(client)
        batches = Batches(client)
        return cls(
            ledger,
            turns,
            Store(settings),
            batches=batches,
            retention_s=settings.retention_s,
            grace_s=settings.sweep_grace_s,
        )

    def is_due(self, every_s: float) -> bool:
        """Return True if the caller should sweep: once per ``every_s`` among all couriers."""
        return self._turns.is_due(every_s)

    def run(self, *, dry_run: bool = False, is_over: Callable[[], bool] = lambda: False) -> Iterator[Leftover]:
        """Remove leftovers job by job and yield each; with ``dry_run`` only yield them.

        Stops early once ``is_over`` returns True.  Raises Conflict (``sweep_under_way``), QueueUnavailable,
        StoreUnavailable; what has been removed by then stays removed.
        """
        turn = nullcontext(_keep_nothing) if dry_run else self._turns.hold()
        with turn as keep_turn:
            for leftover in chain(
                self._leftovers(is_over, keep_turn),
                self._old_batches(is_over, keep_turn),
                self._old_embeddings(is_over, keep_turn),
            ):
                if not dry_run:
                    self._store.delete(item.key for item in leftover.objects)
                    logger.info(
                        "objects_swept",
                        folder=leftover.folder,
                        why=leftover.why,
                        objects=len(leftover.objects),
                        **({"job_id": _job_of(leftover.folder)} if _FOLDER.match(leftover.folder) else {}),
                    )
                yield leftover

    def _leftovers(self, is_over: Callable[[], bool], keep_turn: Callable[[], None]) -> Iterator[Leftover]:
        folders = (
            (folder, tuple(found))
            for folder, found in groupby(self._store.listed("results/"), key=_job_folder)
            if folder and not is_over()
        )
        while jobs := list(islice(folders, JOBS_AT_ONCE)):
            keep_turn()
            # Asked once they are listed: what is listed of a job that has ended by now will not change.
            ends = self._ledger.ends([_job_of(folder) for folder, _ in jobs])
            now_ms = self._turns.now_ms()
            for (folder, found), end in zip(jobs, ends, strict=True):
                if is_over():
                    return
                keep_turn()
                leftover = self._leftover(folder, found, end, now_ms)
                if leftover is not None:
                    yield leftover

    def _old_batches(self, is_over: Callable[[], bool], keep_turn: Callable[[], None]) -> Iterator[Leftover]:
        """Yield what was collected of batches whose records are gone, for as long as objects of jobs are kept then."""
        for folder, objects in groupby(self._store.listed("batches/"), key=_batch_folder):
            if is_over():
                return
            keep_turn()
            found = tuple(objects)
            gone_ms = max(item.modified.timestamp() for item in found) * 1000 + self._retention_ms
            is_old = self._turns.now_ms() - gone_ms >= self._grace_ms
            if folder and is_old and self._batches.read(folder.split("/")[2]) is None:
                yield Leftover(folder, "the batch's record no longer exists", found)

    def _old_embeddings(self, is_over: Callable[[], bool], keep_turn: Callable[[], None]) -> Iterator[Leftover]:
        listed = self._store.listed(EMBEDDINGS)
        while not is_over() and (page := list(islice(listed, DELETED_AT_ONCE))):
            keep_turn()
            since_ms = self._turns.now_ms() - self._retention_ms
            old = tuple(item for item in page if item.modified.timestamp() * 1000 < since_ms)
            if old:
                yield Leftover(EMBEDDINGS, "as old as records become", old)

    def _leftover(
        self, folder: str, found: tuple[ListedObject, ...], end: JobEnd | None, now_ms: float
    ) -> Leftover | None:
        """Return one job's leftovers, if any.  end: None when it has no record."""
        tenant = folder.split("/")[1]
        if end is None:
            # When the record expired is unknown: the retention after the job's end, which is after its last object.
            gone_ms = max(item.modified.timestamp() for item in found) * 1000 + self._retention_ms
            return (
                Leftover(folder, "the job's record no longer exists", found)
                if now_ms - gone_ms >= self._grace_ms
                else None
            )
        if end.tenant != tenant or end.ended_ms is None or not end.status.ended:
            return None
        if now_ms - end.ended_ms < self._grace_ms:
            return None
        named = self._named(folder, found, has_result=end.status is Status.SUCCEEDED)
        lost = tuple(item for item in found if item.key not in named)
        return Leftover(folder, "not part of the job's result", lost) if lost else None

    def _named(self, folder: str, found: tuple[ListedObject, ...], *, has_result: bool) -> set[str]:
        """Return the keys that the job's manifest lists, and its own; all of them if it cannot be read.

        has_result: the record says that there is a manifest, so that one missing from the listing is read all the same:
        not all compatible stores list what was just written.
        """
        manifest_key = f"{folder}manifest.json"
        keys = {item.key for item in found}
        if manifest_key not in keys and not has_result:
            return set()
        if manifest_key in keys and len({key.split("/")[3] for key in keys}) == 2:
            return keys  # the usual case: the manifest and a single attempt
        try:
            manifest = Manifest.model_validate_json(self._store.read(manifest_key))
        except NotFound:  # the job is being deleted right now, or the store has lost it
            if manifest_key not in keys:
                logger.warning("manifest_missing", job_id=_job_of(folder), key=manifest_key)
            return keys
        except ValidationError:
            logger.warning("manifest_not_understood", job_id=_job_of(folder), key=manifest_key)
            return keys
        return {manifest_key, *(file.key for file in manifest.files)}


def _keep_nothing() -> None:
    """Do nothing: a dry run removes nothing, so it takes no turn."""


def _job_of(folder: str) -> str:
    return folder.split("/")[2]


def _batch_folder(found: ListedObject) -> str:
    """Return the folder of the batch that an object belongs to, with a trailing slash; empty if it is of none."""
    match = _BATCH_FOLDER.match(found.key)
    return match[0] if match else ""


def _job_folder(found: ListedObject) -> str:
    """Return the folder of the job that an object belongs to, with a trailing slash; empty if it is not one of ours."""
    match = _FOLDER.match(found.key)
    return match[0] if match else ""
