"""Webhooks taken all in one go, as no courier does."""

from __future__ import annotations

from maskfleet.jobs.ledger.deliveries import Deliveries, Delivery, Shares

ALL_AT_ONCE = Shares(per_host=1_000_000, senders=100_000_000, sending={})


def take_due(
    deliveries: Deliveries, limit: int = 20, *, lease_s: float = 60, shares: Shares = ALL_AT_ONCE
) -> list[Delivery]:
    return deliveries.due(limit, lease_s=lease_s, shares=shares)
