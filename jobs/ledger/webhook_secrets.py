"""The generations of each tenant's webhook secret: which one is current, and which earlier ones still sign.

Redis holds names only, which say nothing without the service's master secret:

    webhook_secrets:{tenant}  zset  generation → until when it signs, +inf for the current one; no entry before the
                                    first rotation
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import cast

import redis

from maskfleet.jobs.errors import TooManySecrets
from maskfleet.jobs.ledger.connection import load_script, redis_errors
from maskfleet.jobs.schema.wire import utc_time
from maskfleet.jobs.webhook_secrets import tenant_secret

#: Every secret that signs adds a signature to each webhook, so that few may overlap.
MAX_EARLIER = 3
#: The first generation's name in Redis; a rotation names its generation by random hex digits.
_FIRST = "first"


@dataclass(frozen=True, slots=True)
class TenantSecret:
    """A secret that a tenant's webhooks are signed with.  until: None as long as nothing has been decided."""

    text: str
    until: datetime | None = None

    def __repr__(self) -> str:
        return f"TenantSecret(until={self.until})"


class WebhookSecrets:
    """The tenants' secrets.  masters: the service's, of which the first is current and the others are being retired."""

    def __init__(self, client: redis.Redis, masters: tuple[str, ...]) -> None:
        self._redis = client
        self._masters = masters
        self._rotate = load_script(client, "rotate_webhook_secret")

    def of(self, tenant: str) -> tuple[TenantSecret, ...]:
        """Return the secrets that sign now, the current one first; none if there is no master secret."""
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zrange(f"mf:webhook_secrets:{tenant}", 0, -1, desc=True, withscores=True)
            pipeline.time()
            kept, (seconds, microseconds) = pipeline.execute()
        now_ms = seconds * 1000 + microseconds / 1000
        found = cast("list[tuple[str, float]]", kept) or [(_FIRST, math.inf)]
        generations = [(name, until_ms) for name, until_ms in found if until_ms > now_ms]
        return tuple(self._derived(tenant, generations))

    def rotate(self, tenant: str, overlap_s: float) -> None:
        """Replace a tenant's secret; the previous one signs as well for ``overlap_s``.

        Raises TooManySecrets (``too_many_secrets``) if several earlier ones still sign, unless ``overlap_s`` is 0,
        which ends them all at once.
        """
        with redis_errors():
            reply = self._rotate(args=[tenant, uuid.uuid4().hex, int(overlap_s * 1000), MAX_EARLIER])
        if reply == "too_many":
            raise TooManySecrets(
                "too_many_secrets",
                f"{MAX_EARLIER} earlier secrets still sign your webhooks. Wait until one of them has ended, "
                "or end them all at once with overlap_s 0.",
            )

    def _derived(self, tenant: str, generations: list[tuple[str, float]]) -> Iterator[TenantSecret]:
        for master, (name, until_ms) in product(self._masters, generations):
            until = None if until_ms == math.inf else utc_time(int(until_ms))
            yield TenantSecret(tenant_secret(master, tenant, "" if name == _FIRST else name), until)
