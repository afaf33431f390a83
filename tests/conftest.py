"""Shared fixtures: a real Redis and a real S3, started once, the ledger and the store on them, and a whole stack."""

from __future__ import annotations

import base64
import gc
import logging
import os
import re
import secrets
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.folder import lock_file
from maskfleet.stack.process import StackLine, StackProcess
from maskfleet.stack.servers import start_redis, start_s3
from maskfleet.stack.settings import TENANT
from tests.collector import Collector

BUCKET = "maskfleet"
#: A second bucket, which jobs may name in an ``s3_uri``.
PHOTOS_BUCKET = "photos"
#: What the tenants' secrets are derived from.
WEBHOOK_MASTER = f"whsec_{base64.b64encode(b'a secret of the tests, long').decode()}"
#: The secret of the running stack's tenant.
WEBHOOK_SECRET = tenant_secret(WEBHOOK_MASTER, TENANT)


#: Patterns of secrets: webhook secrets, created keys, signed links, and the keys that tests use.
SECRET = re.compile(
    rb"whsec_[A-Za-z0-9+/=]{16,}|mf_[0-9a-f]{12}_\w{20,}|mft_[\w-]+\.[\w-]+\.[\w-]{20,}"
    rb"|X-Amz-Signature=[0-9a-f]{64}|key-of-the-(?:apiary|bakery)"
)
#: The files whose tests use the running stack; they go to the same process, so that only one starts it.
ON_THE_STACK = (
    "tests/maskfleet/test_async_client.py",
    "tests/maskfleet/test_batch_sources.py",
    "tests/maskfleet/test_client.py",
    "tests/maskfleet/test_commands.py",
    "tests/maskfleet/test_doctor.py",
    "tests/maskfleet/test_token_command.py",
    "tests/maskfleet/test_top.py",
    "tests/maskfleet/test_traces.py",
    "tests/maskfleet/test_webhook_commands.py",
    "tests/maskfleet/test_webhook_listen.py",
    "tests/walk/test_browser.py",
    "tests/walk/test_snippets.py",
)
#: What takes longest begins, so that the processes sharing the tests finish at about the same time; what mostly waits
#: stands beside what mostly computes, so that the cores are busy.  Of the first four only one needs the masks' compiled
#: kernels: in a new checkout several would compile them at once.
FIRST = (
    "tests/faults/test_chaos.py",
    "tests/worker/test_memory.py",
    "tests/faults/test_faulty_node.py",
    "tests/api/test_schemathesis.py",
    *ON_THE_STACK,
    "tests/worker/test_compiled.py",
    "tests/api/test_connections.py",
    "tests/maskfleet/test_wheel.py",
    "tests/faults/test_single_faults.py",
    "tests/worker/test_truth.py",
    "tests/maskfleet/test_up.py",
    "tests/worker/test_everything.py",
    "tests/maskfleet/test_demo.py",
    "tests/faults/test_redis_outages.py",
    "tests/worker/test_formats.py",
    "tests/faults/test_image_nodes.py",
    "tests/worker/test_families.py",
    "tests/worker/test_worker_process.py",
    "tests/api/test_tokens.py",
    "tests/maskfleet/test_tune.py",
    "tests/worker/test_courier.py",
    "tests/api/test_clicks.py",
    "tests/worker/test_borderline.py",
    "tests/api/test_gunicorn.py",
    "tests/worker/test_attempt.py",
    "tests/worker/test_slots.py",
    "tests/walk/test_secrets.py",
    "tests/jobs/test_ends.py",
    "tests/worker/test_embeddings.py",
    "tests/faults/test_failover.py",
    "tests/faults/test_deaf_node.py",
)

# Importing torch and the tests makes a million objects, all of which stay: the collector would walk over them again and
# again, for a third of the time until the first test, and during the tests.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect garbage from now on, more rarely, and not among what imports and the collection of tests have made."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See that every test has an id of its own, by which pytest-xdist runs each once; begin with the longest files."""
    assert len({item.nodeid for item in items}) == len(items)

    order = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(_file(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # Any: xdist's own, not always installed
    """With --dist loadfile, hand out whole files, and those that share the running stack together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneStack(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "the running stack" if _file(nodeid) in ON_THE_STACK else super()._split_scope(nodeid)

    return OneStack(config, log)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@contextmanager
def process_as_before() -> Iterator[None]:
    """Take back what a command or a request in this process changes of it, and would change for all later tests.

    Settings of the logs and what is bound to their lines, the environment, the umask, and what Ctrl-C and SIGTERM do.
    """
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    environment, umask = dict(os.environ), _umask()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()
        if structlog.get_config() != config:
            structlog.configure(**config)
            root.handlers[:] = handlers
            root.setLevel(level)
        for name in {name for name, _ in os.environ.items() ^ environment.items()} - {"PYTEST_CURRENT_TEST"}:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        os.umask(umask)
        for number, handler in signals.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _umask() -> int:
    os.umask(mask := os.umask(0o077))  # it can only be read by setting it
    return mask


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    with process_as_before():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_log_of_the_suite_shows_a_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Search all logs that programs wrote during the tests, once all have ended."""
    yield
    logs = [path for path in tmp_path_factory.getbasetemp().rglob("*.log") if path.is_file()]
    shown = {str(path): found[0] for path in logs if (found := SECRET.search(path.read_bytes()))}
    assert shown == {}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(_process_as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the shell's own MASKFLEET_* settings out of the tests."""
    for name in [name for name in os.environ if name.startswith("MASKFLEET_")]:
        monkeypatch.delenv(name)


@contextmanager
def ports_in_turn() -> Iterator[None]:
    """Keep other test runs and local stacks from choosing ports meanwhile, so that no two choose the same."""
    turn = lock_file(Path(tempfile.gettempdir()) / f"maskfleet-{os.getuid()}.lock", wait=True)
    try:
        yield
    finally:
        os.close(turn)


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Start a Redis with its data and log in a folder; yield its URL."""
    with ports_in_turn():
        server = start_redis(folder / "data", log=folder / "redis.log")
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis of this test run."""
    with running_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def store_fields(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings fields for this test run's S3, with the buckets BUCKET and PHOTOS_BUCKET."""
    folder = tmp_path_factory.mktemp("s3")
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    with ports_in_turn():
        server = start_s3(
            folder / "data",
            access_key=access_key,
            secret_key=secret_key,
            buckets=(BUCKET, PHOTOS_BUCKET),
            log=folder / "s3.log",
        )
    yield {
        "s3_endpoint": server.url,
        "s3_access_key": access_key,
        "s3_secret_key": secret_key,
        "bucket": BUCKET,
    }
    server.stop()


@pytest.fixture(scope="session")
def shared_fields(redis_url: str, store_fields: dict[str, str]) -> dict[str, str]:
    """The settings fields for both servers, for any settings class."""
    return {"redis_url": redis_url, **store_fields}


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test run's Redis, which is empty when the test starts."""
    client = connect(SharedSettings(redis_url=redis_url))
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def ledger(redis_client: redis.Redis) -> Ledger:
    """An empty ledger."""
    return Ledger(redis_client, retention_s=3600)


@pytest.fixture
def deliveries(redis_client: redis.Redis) -> Deliveries:
    """The webhooks of the empty ledger."""
    return Deliveries(redis_client)


@pytest.fixture
def worker_registry(redis_client: redis.Redis) -> WorkerRegistry:
    """The workers' registry, empty."""
    return WorkerRegistry(redis_client)


@pytest.fixture
def store(store_fields: dict[str, str]) -> Store:
    """The test run's store; it may contain objects of earlier tests."""
    return Store(SharedSettings(**store_fields))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root folder."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def demo_model(repository: Path) -> str:
    """The bundled checkpoint, as a value for MASKFLEET_MODEL."""
    return str(repository / "models" / "sam-demo")


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """The collector of the running stack's spans; none may have a secret."""
    collector = Collector()
    with collector.running():
        yield collector
    assert [found[0] for body in collector.bodies if (found := SECRET.search(body))] == []


@pytest.fixture(scope="session")
def running_stack(
    tmp_path_factory: pytest.TempPathFactory, demo_model: str, collector: Collector
) -> Iterator[StackLine]:
    """A local stack shared by this test run; it may contain jobs of other tests."""
    pytest.importorskip("torch", reason="A local stack runs a worker.")
    settings = {
        "MASKFLEET_MODEL": demo_model,
        "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1",
        "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER,
        **collector.environment,
    }
    with StackProcess(tmp_path_factory.mktemp("stack"), settings) as stack:
        yield stack.line
