"""A bound on the request bodies that are held in memory at once: for the process, and for each tenant."""

from __future__ import annotations

import threading
from collections import Counter

from maskfleet.jobs.errors import ByteQuota, TooManyBytes

#: Smaller bodies are not counted, so that those of ordinary requests pass beside large ones.
SMALL_BYTES = 64 * 2**10
#: How long a request waits for room before it is refused; its body is not read meanwhile.
PATIENCE_S = 10.0


class BytesUnderWay:
    """Counts the bytes of bodies from before they are read until their requests have ended."""

    def __init__(self, most: int, most_per_tenant: int, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._most, self._most_per_tenant = most, most_per_tenant
        self._of_tenant: Counter[str] = Counter()
        self._given_back = threading.Condition()

    def take(self, tenant: str, size: int) -> int:
        """Take room for a body, and wait for it if need be; return what to give back.

        Raises ByteQuota when the tenant's own bodies leave no room, TooManyBytes when all tenants' do.
        """
        if size <= SMALL_BYTES:
            return 0
        with self._given_back:
            if not self._given_back.wait_for(lambda: self._fits(tenant, size), self._patience_s):
                if self._of_tenant[tenant] + size > self._most_per_tenant:
                    raise ByteQuota(self._most_per_tenant)
                raise TooManyBytes
            self._of_tenant[tenant] += size
        return size

    def give_back(self, tenant: str, size: int) -> None:
        """Give back what ``take`` returned."""
        with self._given_back:
            self._of_tenant[tenant] -= size
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
            self._given_back.notify_all()

    def _fits(self, tenant: str, size: int) -> bool:
        return self._of_tenant[tenant] + size <= self._most_per_tenant and self._of_tenant.total() + size <= self._most
