"""The checks of Redis, the store, the clock, the workers and the keys."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from importlib.metadata import version

from maskfleet.cli.checks.answers import status_of
from maskfleet.cli.checks.finding import Finding, State, address, timed, without_secrets
from maskfleet.cli.checks.read_settings import Settings
from maskfleet.jobs.errors import JobError, NotFound, QueueUnavailable, StoreMisconfigured, StoreUnavailable
from maskfleet.jobs.fleet import OUTPUTS
from maskfleet.jobs.ledger.api_keys import KeyStore
from maskfleet.jobs.ledger.connection import check_writes, connect
from maskfleet.jobs.ledger.version import SCHEMA, Migration, upgrade
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.storage import MAX_SKEW_S, Store
from maskfleet.stack.discovery import LocalServer

#: Clocks that are further apart make leases and links wrong by as much; jobs take about so long.
MOST_OFF_S, NOTICED_OFF_S = 60.0, 5.0

_REDIS_MENDS = {
    "not_responding": "Start Redis, or set MASKFLEET_REDIS_URL to where it is; check firewalls and, for rediss://, the "
    "certificate and MASKFLEET_REDIS_CA.",
    "credentials": "Put the user and password that Redis knows into MASKFLEET_REDIS_URL: redis://user:password@host:6379/0.",
    "permission": "Give the user in MASKFLEET_REDIS_URL the rights in deploy/redis/users.acl of this version.",
    "full": "Raise Redis' maxmemory, or delete ended jobs.",
    "read_only": "This is a replica: set MASKFLEET_REDIS_URL to the primary, or to the Sentinels.",
    "no_primary": "Check the Sentinels, and the primary's name in MASKFLEET_REDIS_URL.",
    "no_replicas": "Start Redis' replicas, or lower min-replicas-to-write.",
    "disk": "Redis cannot save: make room on its disk, see its log.",
    "cluster": "Use a Redis that is no cluster.",
    "ledger_lost": "Redis came back empty: see docs/operations.md, Failover.",
}


def check_redis(settings: Settings) -> Generator[Finding, None, bool]:
    """Yield what is wrong with Redis and the ledger in it; return whether it answers."""
    shared = settings.api
    where = address(shared.redis_url.get_secret_value())
    wrong = None
    try:
        client = connect(shared)
        registry = WorkerRegistry(client)
        registry.clock_ahead_s()  # connects
        started = time.monotonic()
        registry.clock_ahead_s()
        took_ms = (time.monotonic() - started) * 1000
    except QueueUnavailable as error:
        said = f" ({error.said})" if error.said and error.reason in ("not_responding", "permission") else ""
        mend = _REDIS_MENDS.get(error.reason, "Try again in a minute; Redis' log says more.")
        wrong = f"{where} cannot be used: {error.reason}.{without_secrets(said)}", mend
    except ValueError:  # its message may show a part of the password
        mend = "Write redis://user:password@host:6379/0, with rediss:// for TLS; %2F for a / in the password."
        wrong = "MASKFLEET_REDIS_URL is no URL of Redis.", mend
    if wrong is not None:
        yield Finding("redis", State.FAILED, *wrong)
        yield Finding("ledger", State.SKIPPED, "Redis cannot be used.")
        return False
    try:
        check_writes(client)
    except QueueUnavailable as error:
        mend = _REDIS_MENDS.get(error.reason, "Try again in a minute; Redis' log says more.")
        # An operator's user may not write what the programs write.
        state = State.WARNING if error.reason == "permission" else State.FAILED
        yield Finding("redis", state, f"{where} answers, and refuses what the programs write: {error.reason}.", mend)
    else:
        yield timed("redis", f"{where} answers and accepts writes", took_ms, "Run the programs nearer to Redis.")
    yield _ledger(upgrade(client, dry_run=True))
    return True


def _ledger(steps: Iterator[Migration]) -> Finding:
    try:
        is_old = next(steps, None) is not None
    except QueueUnavailable as error:
        return Finding("ledger", State.SKIPPED, f"This Redis user may not see its version ({error.reason}).")
    except JobError as error:
        return Finding("ledger", State.FAILED, str(error), "Use programs of the version that the ledger has.")
    if is_old:
        detail = f"The ledger is older than version {SCHEMA}, which these programs need."
        mend = "Run `maskfleet ledger upgrade`; see docs/operations.md, Upgrading."
        return Finding("ledger", State.FAILED, detail, mend)
    return Finding("ledger", State.OK, f"The ledger has version {SCHEMA}, or is empty.")


def check_store(settings: Settings) -> Iterator[Finding]:
    shared = settings.api
    where = f"the bucket {shared.bucket!r} at {address(shared.s3_endpoint) if shared.s3_endpoint else 'Amazon S3'}"
    try:
        store = Store(shared)
        store.ping()  # connects
        started = time.monotonic()
        store.ping()
        took_ms = (time.monotonic() - started) * 1000
        _use(store)
    except NotFound:
        yield Finding("s3", State.FAILED, f"There is no {where.removeprefix('the ')}.", _bucket_mend(shared.bucket))
    except StoreMisconfigured as error:
        yield Finding("s3", State.FAILED, f"{where} cannot be used. {error.detail}", _store_mend(error.detail))
    except StoreUnavailable:
        mend = "Start it, or set MASKFLEET_S3_ENDPOINT to where it is; empty means Amazon S3."
        yield Finding("s3", State.FAILED, f"{where} does not answer.", mend)
    except ValueError:
        yield Finding("s3", State.FAILED, "MASKFLEET_S3_ENDPOINT is no URL.", "Write http://host:9000 or https://…")
        return
    else:
        yield timed(
            "s3", f"{where}: an object was written, read, listed and deleted", took_ms, "Run workers nearer to it."
        )
    for bucket in sorted({one.bucket for one in shared.allowed_buckets}):
        try:
            Store(shared.model_copy(update={"bucket": bucket})).ping()
        except (NotFound, StoreMisconfigured):
            yield Finding(
                "s3",
                State.WARNING,
                f"The bucket {bucket!r}, which jobs may name, does not exist or may not be read.",
                "Create it and let this service read it, or take it out of MASKFLEET_ALLOWED_BUCKETS.",
            )
        except StoreUnavailable:
            return


def _use(store: Store) -> None:
    """Do with one object what the programs do.  Raises as Store does, or StoreMisconfigured."""
    key, data = f"results/self-test/doctor@{socket.gethostname()}-{os.getpid()}", str(time.time_ns()).encode()
    store.put(key, data, "text/plain")
    try:
        if store.read(key) != data or key not in [one.key for one in store.listed(key)]:
            raise StoreMisconfigured("it returned something else than was written.")
    finally:
        store.delete([key])


def check_clock(settings: Settings, redis_answers: bool) -> Finding:
    off: dict[str, float] = {}
    with suppress(JobError, ValueError):  # one that is off by so much that the store refuses it shows by Redis'
        off["S3"] = Store(settings.api).clock_ahead_s()
    if redis_answers:
        with suppress(QueueUnavailable):
            off["Redis"] = WorkerRegistry(connect(settings.api)).clock_ahead_s()
    if not off:
        return Finding("clock", State.SKIPPED, "Neither Redis nor S3 can be asked for the time.")
    seen = ", ".join(f"{ahead_s:+.1f} s off {whose}'s" for whose, ahead_s in off.items())
    nearest = min(off.values(), key=abs)
    mend = "Keep it by NTP: `timedatectl set-ntp true`, or chrony; in a container, the host's clock."
    if abs(nearest) > MOST_OFF_S or abs(off.get("S3", 0.0)) > MAX_SKEW_S:
        return Finding("clock", State.FAILED, f"This machine's clock is {seen}.", mend)
    if max(map(abs, off.values())) > NOTICED_OFF_S:
        return Finding("clock", State.WARNING, f"The clocks are apart: this machine's is {seen}.", mend)
    return Finding("clock", State.OK, f"This machine's clock is {seen}.")


def check_workers(settings: Settings, redis_answers: bool) -> Iterator[Finding]:
    if not redis_answers:
        yield Finding("workers", State.SKIPPED, "Redis cannot be used.")
        return
    try:
        registry = WorkerRegistry(connect(settings.api))
        seen, for_outputs = registry.workers(loading=True), registry.serving(OUTPUTS)
    except QueueUnavailable as error:
        yield Finding("workers", State.SKIPPED, f"This Redis user may not see them ({error.reason}).")
        return
    own = version("maskfleet")
    for worker in seen:
        if worker.fault:
            yield Finding("workers", State.FAILED, f"{worker.node} has withdrawn: {worker.fault}", _fault_mend(worker))
    others = sorted({worker.version for worker in seen} - {own, ""})
    if others:
        detail = f"Workers run {', '.join(others)}, this is {own}."
        yield Finding("workers", State.WARNING, detail, "Upgrade the workers first; see docs/operations.md, Upgrading.")
    served = {worker.model for worker in seen if worker.state == "ready"}
    missing = [name for name in settings.api.model_names if name not in served]
    if settings.stack is None and missing:
        detail = f"No worker that is ready serves {', '.join(missing)}; jobs for it wait."
        yield Finding("workers", State.WARNING, detail, "Start `maskfleet worker`, with the same MASKFLEET_MODEL.")
    elif not served:
        detail = "No worker is ready; jobs wait."
        yield Finding("workers", State.WARNING, detail, "A starting one needs a moment; else see the worker's log.")
    else:
        if not for_outputs:
            detail = "No worker takes the jobs that need no model; exports wait."
            mend = "Leave MASKFLEET_SERVE_OUTPUTS on for some workers, or run `maskfleet worker --devices none`."
            yield Finding("workers", State.WARNING, detail, mend)
        ready = sum(worker.state == "ready" for worker in seen)
        yield Finding("workers", State.OK, f"{ready} ready, for {', '.join(sorted(served))}.")


def check_keys(settings: Settings, redis_answers: bool) -> Iterator[Finding]:
    create = "Create one: `maskfleet keys create --tenant NAME --scope jobs:read --scope jobs:write`."
    if settings.stack is not None:
        yield _stack_key(settings.stack)
        return
    if settings.api.api_keys:
        yield Finding("keys", State.OK, f"{len(settings.api.api_keys)} API key(s) in MASKFLEET_API_KEYS.")
    elif not redis_answers:
        yield Finding(
            "keys", State.SKIPPED, "None in MASKFLEET_API_KEYS, and Redis, which may have some, cannot be used."
        )
    else:
        try:
            count = len(KeyStore(connect(settings.api)).listed())
        except QueueUnavailable as error:
            yield Finding("keys", State.SKIPPED, f"This Redis user may not list them ({error.reason}).")
        else:
            if count:
                yield Finding("keys", State.OK, f"{count} API key(s) in Redis.")
            else:
                yield Finding("keys", State.FAILED, "There is no API key: every request is refused.", create)
    if not settings.courier.masters:
        yield Finding(
            "keys",
            State.WARNING,
            "MASKFLEET_WEBHOOK_MASTER_SECRETS is not set: webhooks cannot be signed.",
            "Set it for the API and the courier; see docs/operations.md, Webhook secrets.",
        )


def _stack_key(stack: LocalServer) -> Finding:
    status = status_of(f"{stack.api_url}/v1/models", {"Authorization": f"Bearer {stack.api_key}"})
    if status == 200:
        return Finding("keys", State.OK, "The API accepts the stack's key.")
    detail = f"The API answers {status or 'nothing'} to the stack's own key."
    return Finding("keys", State.FAILED, detail, "Stop the stack and start it again; its logs are in its folder.")


def _bucket_mend(bucket: str) -> str:
    return f"Create it (`aws s3 mb s3://{bucket}`), or set MASKFLEET_BUCKET to the one that is there."


def _store_mend(detail: str) -> str:
    if "clock" in detail:
        return "Set this machine's clock; see below."
    if "bucket does not exist" in detail:
        return "Create the bucket, or set MASKFLEET_BUCKET to the one that is there."
    return (
        "Check MASKFLEET_S3_ACCESS_KEY and MASKFLEET_S3_SECRET_KEY, or what boto3 finds by itself; they need "
        "GetObject, PutObject, DeleteObject and ListBucket on the bucket."
    )


def _fault_mend(worker: WorkerSeen) -> str:
    if worker.fault.startswith("model_wrong"):
        return "See docs/operations.md, A model that is wrong: check its weights and its device."
    return "Mend what it names there; it returns by itself. See docs/operations.md, A worker that is wrong itself."
