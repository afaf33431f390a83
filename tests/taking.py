"""What workers and couriers take: jobs as tests name them, and webhooks all in one go, as no courier does."""

from __future__ import annotations

import redis

from maskfleet.jobs.ledger.deliveries import Deliveries, Delivery, Shares
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.record import JobRecord

ALL_AT_ONCE = Shares(per_host=1_000_000, senders=100_000_000, sending={})


def take_due(
    deliveries: Deliveries, limit: int = 20, *, lease_s: float = 60, shares: Shares = ALL_AT_ONCE
) -> list[Delivery]:
    return deliveries.due(limit, lease_s=lease_s, shares=shares)


def pass_delays(client: redis.Redis) -> None:
    """Act as if the delays of all jobs that were handed back had passed."""
    for key in client.scan_iter("mf:returned:*"):
        client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 1))


def claim(
    ledger: Ledger, job_id: str, worker: str = "node-1", *, lease_s: float = 30, max_attempts: int = 3
) -> JobRecord | None:
    """Claim a job as if it were next in its queue; return None if there was none to claim."""
    queued = ledger.read(job_id)
    assert queued is not None
    client, own = ledger._redis, f"mf:waiting:{queued.queue}:{queued.tenant}"
    if client.zrank(own, job_id):
        client.zadd(own, {job_id: 0}, xx=True)
    if client.zrank(turns := f"mf:turns:{queued.queue}", queued.tenant):
        client.zadd(turns, {queued.tenant: -1}, xx=True)
    record = ledger.claim_next((queued.queue,), worker, lease_s=lease_s, max_attempts=max_attempts).record
    assert record is None or record.id == job_id
    return record
