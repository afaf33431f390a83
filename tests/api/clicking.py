"""Send a job and wait for it in one request, as a click does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import requests

from maskfleet.jobs.ledger.jobs import Ledger
from tests.api.caller import job
from tests.api.door import Door
from tests.waiting import wait_until


@contextmanager
def click(door: Door, wait: int = 30, key: str = "", **fields: Any) -> Iterator[Future[requests.Response]]:
    """Send a job and wait for it, in a thread; yield once it is held."""
    headers = {"Prefer": f"wait={wait}"} | ({"Idempotency-Key": key} if key else {})
    held = door.held()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(door.ask, "POST", "/v1/jobs", body=job(**fields), **headers)
        wait_until(lambda: door.held() > held or answer.done(), 20)
        yield answer


def the_job(ledger: Ledger, tenant: str = "apiary") -> str:
    """Return the tenant's only job, once it is recorded."""

    def found() -> str:
        records = ledger.page_of(tenant, limit=10).records
        assert len(records) < 2
        return records[0].id if records else ""

    return wait_until(found)
