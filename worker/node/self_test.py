"""Whether a node can do its part of a job: reach its own store and the internet, tell the time, and decode an image."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import requests

from maskfleet.jobs.addresses import AddressRefused
from maskfleet.jobs.errors import NodeFault, NotFound, StoreMisconfigured
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.storage import MAX_SKEW_S, Store
from maskfleet.worker.image.sandbox import KNOWN_IMAGE, Sandbox

#: A clock that is off by more against two others is wrong; a job takes about so long.
MAX_CLOCK_OFF_S = 60.0
#: How long the host of ``egress_probe_url`` may take to respond.
EGRESS_PROBE_S = 10.0


def self_test(
    store: Store, worker_registry: WorkerRegistry, settings: WorkerSettings, egress: requests.Session
) -> None:
    """Raise NodeFault if this node would fail jobs that others can do.

    Raises StoreUnavailable or QueueUnavailable if that cannot be told now.
    """
    store.sign_in_again()
    _test_store(store, settings.node)
    _test_clock(store, worker_registry)
    _test_decoder()
    if settings.egress_probe_url:
        _test_egress(settings.egress_probe_url, egress)


def _test_store(store: Store, node: str) -> None:
    key, data = f"results/self-test/{node}", str(time.time_ns()).encode()
    try:
        store.ping()  # first: some stores make a bucket for whatever is put into it
    except NotFound as error:
        raise StoreMisconfigured("its bucket does not exist.") from error
    try:
        store.put(key, data, "text/plain")
        if store.read(key) != data:
            raise StoreMisconfigured("it returned other bytes than were written.")
        store.delete([key])
    except NotFound as error:
        raise StoreMisconfigured("what was written was not found.") from error


def _test_clock(store: Store, worker_registry: WorkerRegistry) -> None:
    to_store_s, to_redis_s = store.clock_ahead_s(), worker_registry.clock_ahead_s()
    # Redis may be wrong itself; the store decides whether it accepts our requests.
    off_s = min(to_store_s, to_redis_s, key=abs)
    if abs(to_store_s) > MAX_SKEW_S or (abs(off_s) > MAX_CLOCK_OFF_S and to_store_s * to_redis_s > 0):
        raise NodeFault("clock_wrong", f"The machine's clock is {to_store_s:+.0f} s off the object store's.")


def _test_decoder() -> None:
    try:
        sandbox = Sandbox()
    except OSError as error:
        raise NodeFault("decoder_broken", f"The image decoder cannot be started: {error.strerror}.") from error
    try:
        sandbox.decode(KNOWN_IMAGE, 1)
    finally:
        sandbox.close()


def _test_egress(url: str, egress: requests.Session) -> None:
    """Whether images of other hosts can be fetched; any HTTP response shows it."""
    host = urlsplit(url).hostname
    try:
        egress.get(url, stream=True, timeout=EGRESS_PROBE_S).close()
    except AddressRefused as error:
        raise NodeFault("egress_blocked", f"The probe's host {host} has an address that is refused here.") from error
    except requests.RequestException as error:
        raise NodeFault("egress_blocked", f"The machine's network does not reach {host}.") from error
