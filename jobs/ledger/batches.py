"""Batches: jobs recorded together and counted together, with one webhook when the last has ended.

Ledger.create records them.  The scripts that change their jobs' states also update their counts: see
jobs/ledger/lua/batches.lua, which also says what is different with a batch that couriers expand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import redis

from maskfleet.jobs.ledger.clock import ledger_now_ms
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.ledger.outcomes import Cancel, Deleted
from maskfleet.jobs.schema.batch import BatchRecord, StoredBatchFile

#: For so long a batch that is to be deleted is kept, for a courier to do it.
DELETED_WITHIN_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Ended:
    """An image that is to be collected.  job_id: empty for one that became no job, of which ``json`` tells."""

    job_id: str = ""
    number: int = 0
    json: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What was collected at once: objects in the store whose keys begin with ``prefix``, and what they tell of."""

    prefix: str
    jobs: int
    failures: int
    annotations: int


class Batches:
    """The batches' records.  Every method raises QueueUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._take = load_script(client, "take_batch")
        self._collect = load_script(client, "collect_batch")
        self._count = load_script(client, "count_batch")
        self._finish = load_script(client, "finish_batch")
        self._cancel = load_script(client, "cancel_batch")
        self._delete = load_script(client, "delete_batch")

    def read(self, batch_id: str) -> BatchRecord | None:
        """Return the record, or None if there is none, or it has expired."""
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(f"mf:batch:{batch_id}"))
        return BatchRecord.from_fields(batch_id, fields) if fields else None

    def job_ids(self, batch_id: str) -> tuple[str, ...]:
        """Return the ids of a batch's jobs, in the order of its images."""
        with redis_errors():
            return tuple(cast("list[str]", self._redis.lrange(f"mf:batch_jobs:{batch_id}", 0, -1)))

    def open_jobs(self, batch_id: str) -> tuple[str, ...]:
        """Return the ids of an expanded batch's jobs that have not ended, in the order of its source."""
        with redis_errors():
            return tuple(cast("list[str]", self._redis.zrange(f"mf:batch_open:{batch_id}", 0, -1)))

    def cancel(self, batch_id: str, tenant: str) -> Cancel:
        """Let a batch create no further jobs; cancel those that it has afterwards."""
        with redis_errors():
            return Cancel(self._cancel(args=[batch_id, tenant]))

    def begin_deletion(self, batch_id: str, tenant: str) -> Deleted:
        """Hide an ended batch, and have a courier delete it with its jobs."""
        with redis_errors():
            return Deleted(self._delete(args=[batch_id, tenant, "begin", DELETED_WITHIN_MS]))

    # The courier's side.

    def take(self, lease_s: float) -> str:
        """Return a batch that has work to be done, which is this courier's until the lease ends; empty for none."""
        with redis_errors():
            return str(self._take(args=[int(lease_s * 1000)]))

    def keep(self, batch_id: str, for_s: float) -> None:
        """Have nobody look after the batch for so long: its lease, or until there may be more to do."""
        with redis_errors():
            self._redis.zadd("mf:batch_work", {batch_id: ledger_now_ms(self._redis) + int(for_s * 1000)}, xx=True)

    def to_collect(self, batch_id: str, most: int) -> tuple[Ended, ...]:
        """Return what has ended first and was not collected yet."""
        with redis_errors():
            entries = cast("list[str]", self._redis.lrange(f"mf:batch_ended:{batch_id}", 0, most - 1))
        return tuple(
            Ended(json=entry) if entry.startswith("{") else Ended(entry.partition(" ")[0], int(entry.partition(" ")[2]))
            for entry in entries
        )

    def sizes(self, batch_id: str) -> tuple[int, int]:
        """Return how many of an expanded batch's jobs have not ended, and how much is to be collected."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zcard(f"mf:batch_open:{batch_id}")
            pipeline.llen(f"mf:batch_ended:{batch_id}")
            open_jobs, to_collect = pipeline.execute()
        return open_jobs, to_collect

    def note_found(self, batch_id: str, found: int) -> None:
        """Note how many images the source of a batch has; those that became jobs are among them."""
        with redis_errors():
            self._count(args=[batch_id, found])

    def page_count(self, batch_id: str) -> int:
        """Return how many pages there are."""
        with redis_errors():
            return self._redis.llen(f"mf:batch_pages:{batch_id}")

    def pages(self, batch_id: str) -> tuple[Page, ...]:
        """Return what was collected so far."""
        with redis_errors():
            found = cast("list[str]", self._redis.lrange(f"mf:batch_pages:{batch_id}", 0, -1))
        return tuple(Page(**json.loads(text)) for text in found)

    def forget_page(self, batch_id: str, page: Page) -> None:
        """Forget a page whose jobs and objects are deleted."""
        with redis_errors():
            self._redis.lrem(f"mf:batch_pages:{batch_id}", 1, _text(page))

    def now_ms(self) -> int:
        """Return the ledger's time."""
        with redis_errors():
            return ledger_now_ms(self._redis)

    def collect(
        self, batch_id: str, earlier: int, entries: int, page: Page, job_ids: Sequence[str], *, kept_s: float
    ) -> bool:
        """Note a page of so many entries; return False if another courier was faster.

        earlier: how many pages there are.  kept_s: for how long the records of these jobs are still kept.
        """
        arguments: list[str | int] = [
            batch_id,
            earlier,
            entries,
            _text(page),
            page.annotations,
            int(kept_s * 1000),
            *job_ids,
        ]
        with redis_errors():
            return bool(self._collect(args=arguments) == "ok")

    def finish(self, batch_id: str, pages: int, files: Sequence[StoredBatchFile], retention_s: float) -> bool:
        """Complete a batch; return False if there is more to be done.  pages: that the files were made of."""
        text = json.dumps([file.model_dump() for file in files])
        with redis_errors():
            return bool(self._finish(args=[batch_id, pages, text, int(retention_s * 1000)]) == "ok")

    def end_deletion(self, batch_id: str, tenant: str) -> None:
        """Delete the record of a batch whose jobs and objects are deleted."""
        with redis_errors():
            self._delete(args=[batch_id, tenant, "end", 0])


def _text(page: Page) -> str:
    return json.dumps(asdict(page))
