"""The reconciler: compares what is derived from the records with them, bit by bit, and mends what differs.

The scripts change a record and all that is derived from it (sets, lists, counts) in one step, so that nothing differs
unless somebody changed Redis by hand, or a script was wrong once.  Then it would differ for ever.  This is also what
forgets: ids of expired records, tenants of whom nothing is left, nodes that are gone.

Each step is one script over some hundred entries; jobs/ledger/lua/reconcile.lua says what is compared with what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import redis

from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.queue import canary_queue

#: Entries that are compared in one step; Redis does nothing else meanwhile, for about a millisecond.
STEP = 200

#: What may differ from the records.
MENDABLE = ("in_flight", "queued", "leases", "deadlines", "bytes", "batches", "waiting")
Mended = Counter[str]


class Reconciler:
    """Compares everything, in steps.  Every method raises QueueUnavailable."""

    def __init__(self, client: redis.Redis, retention_s: int) -> None:
        self._redis = client
        self._retention_ms = retention_s * 1000
        self._script = load_script(client, "reconcile")

    def is_due(self, every_s: float) -> bool:
        """Return True if the caller should compare everything: once per ``every_s`` among all couriers."""
        with redis_errors():
            return bool(self._redis.set("mf:reconciled", "1", nx=True, px=int(every_s * 1000)))

    def steps(self) -> Iterator[Mended]:
        """Compare everything once, and yield after each step what it mended."""
        for page, mended in self._pages("tenants"):
            yield mended
            for tenant in page:
                for what in ("jobs", "in_flight", "log"):
                    yield from (mended for _, mended in self._pages(what, tenant))
        for page, _ in self._pages("queues"):
            for queue in page:
                for what in ("queued", "returned"):
                    yield from (mended for _, mended in self._pages(what, queue))
                for tenants, mended in self._pages("turns", queue):
                    yield mended
                    for tenant in tenants:
                        yield from (mended for _, mended in self._pages("waiting_of", f"{queue} {tenant}"))
        for what in ("leases", "deadlines", "waiting", "batches"):
            yield from (mended for _, mended in self._pages(what))
        for nodes, mended in self._pages("nodes"):
            self._forget(nodes)
            yield mended

    def _pages(self, what: str, whose: str = "") -> Iterator[tuple[list[str], Mended]]:
        cursor = "0"
        while True:
            with redis_errors():
                cursor, names, flat = self._script(args=[what, whose, cursor, STEP, self._retention_ms])
            yield names, Counter(dict(zip(flat[::2], map(int, flat[1::2]), strict=True)))
            if cursor == "0":
                return

    def _forget(self, nodes: list[str]) -> None:
        """Remove what is left of nodes: their own queues, which kombu declares for ever, and at last their names."""
        if not nodes:
            return
        with redis_errors():
            queues = [canary_queue(node) for node in nodes]
            names = [f"{kind}.{queue}" for kind in ("_kombu.binding", "_kombu.binding_permanent") for queue in queues]
            self._redis.delete(*queues, *names)
            self._redis.zrem("mf:workers", *nodes)
