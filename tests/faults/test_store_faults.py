"""Any failure to get an object from S3 is reported in one way: the attempt is repeated and the caller not blamed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from maskfleet.jobs.errors import StoreUnavailable
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from tests.faults.proxy import Fault, Mode, Proxy

KEY, OBJECT = "photos/large", b"x" * 1_000_000


@pytest.fixture
def way(store: Store, store_fields: dict[str, str]) -> Iterator[Proxy]:
    store.put(KEY, OBJECT, "image/png")
    with Proxy(int(store_fields["s3_endpoint"].rpartition(":")[2])) as way:
        yield way


@pytest.fixture
def behind(way: Proxy, store_fields: dict[str, str]) -> Store:
    """The store, behind a proxy that can break."""
    return Store(SharedSettings(**{**store_fields, "s3_endpoint": f"http://127.0.0.1:{way.port}"}))


@pytest.mark.parametrize("after_bytes", [50, 2_000, 500_000], ids=["in its head", "soon in it", "in the middle of it"])
def test_an_object_that_breaks_off_is_not_given_in_part(way: Proxy, behind: Store, after_bytes: int) -> None:
    way.set(Fault(Mode.TRUNCATE, after_bytes=after_bytes))

    with pytest.raises(StoreUnavailable):
        behind.read(KEY)

    way.heal()
    assert behind.read(KEY) == OBJECT


def test_a_page_in_place_of_a_listing_is_no_listing(way: Proxy, behind: Store) -> None:
    page = b"<html>the store is being mended"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page)
    way.set(Fault(Mode.ANSWER, answer=head + page))

    with pytest.raises(StoreUnavailable):
        list(behind.listed("photos/"))


@pytest.mark.parametrize("after_bytes", [20, 200, 400, 450])
def test_an_error_that_breaks_off_is_an_outage(way: Proxy, behind: Store, after_bytes: int) -> None:
    """The connection is reset in the head or the body of the response that there is no such object."""
    way.set(Fault(Mode.TRUNCATE, after_bytes=after_bytes))

    with pytest.raises(StoreUnavailable):
        behind.read("photos/none")
