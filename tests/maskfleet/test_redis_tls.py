"""A real redis-server with the TLS of deploy/redis: a whole job runs over it, and no one is served otherwise.

The server that comes with the packages has no TLS, so this needs one on the PATH; `.ci/run` installs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
import requests
import trustme
from kombu.exceptions import OperationalError

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.messages import celery_app
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.webhook_secrets import tenant_secret
from maskfleet.stack.receiver import Receiver
from maskfleet.stack.servers import free_port
from tests.conftest import WEBHOOK_MASTER
from tests.faults.laboratory import STAND_IN
from tests.maskfleet.test_redis_users import KEY, PROGRAMS, GuardedRedis, answers, password_of
from tests.waiting import wait_until


def server_with_tls() -> str | None:
    """Find a redis-server or valkey-server with TLS support."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            # One without TLS reads the settings first and only then reports that it lacks it.  Both exit over this.
            words = [found, "--port", "0", "--tls-port", "1", "--tls-cert-file", "/none", "--tls-key-file", "/none"]
            said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout
            if "Failed to configure TLS" in said:
                return found
    return None


SERVER = server_with_tls()
pytestmark = pytest.mark.skipif(SERVER is None, reason="no redis-server with TLS on the PATH (Debian: redis-server)")


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    """Redis as deploy/compose.tls.yml starts it, on another port and with this test's certificates."""
    assert SERVER is not None
    folder = tmp_path_factory.mktemp("tls")
    authority, own = trustme.CA(), folder / "redis"
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    certificate.private_key_pem.write_to_path(folder / "redis.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "redis.crt")
    shutil.copytree(repository / "deploy" / "redis", own)
    with (own / "users.acl").open("a") as users:
        users.write(f"user inspector on >{password_of('inspector')} ~* &* +@all\n")
    port = free_port()
    passwords = {f"REDIS_PASSWORD_{name.upper()}": password_of(name) for name in PROGRAMS}
    elsewhere = {
        "tls-port": str(port),
        "tls-cert-file": str(folder / "redis.crt"),
        "tls-key-file": str(folder / "redis.key"),
        "tls-ca-cert-file": str(folder / "ca.crt"),
        "bind": "127.0.0.1",
        "dir": str(folder),
    }
    arguments = [word for name, value in elsewhere.items() for word in (f"--{name}", value)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            ["sh", str(own / "start.sh"), "--include", str(own / "tls.conf"), *arguments],
            env={**os.environ, **passwords, "REDIS_SERVER": SERVER, "TMPDIR": str(folder)},
            stdout=log,
            stderr=log,
        )
    running = GuardedRedis(port, folder / "ca.crt", folder, server)
    try:
        wait_until(lambda: answers(running), 30)
        yield running
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def api_url(guarded: GuardedRedis, store_fields: dict[str, str], demo_model: str, tmp_path: Path) -> Iterator[str]:
    """The API, a node without a model, and the courier, each as its own user."""
    bind = f"127.0.0.1:{free_port()}"
    own = {
        "api": {"model": demo_model, "models": STAND_IN, "api_keys": f"apiary:{KEY}", "bind": bind, "processes": "1"},
        "worker": {"model": f"./{STAND_IN}", "node": "node-1", "canary_s": "1"},
        "courier": {"model": demo_model, "webhook_master_secrets": WEBHOOK_MASTER, "tick_s": "0.1"},
    }
    modules = {"api": ("maskfleet", "api"), "worker": ("tests.faults.stand_in",), "courier": ("maskfleet", "courier")}
    with ExitStack() as ending:
        for name, module in modules.items():
            fields = {**store_fields, "egress_allow_private": "1", **guarded.settings(name), **own[name]}
            environment = {f"MASKFLEET_{field.upper()}": value for field, value in fields.items()}
            log = ending.enter_context((tmp_path / f"{name}.log").open("wb"))
            program = subprocess.Popen(
                [sys.executable, "-m", *module],
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
                stdout=log,
                stderr=log,
            )
            ending.callback(program.wait)
            ending.callback(program.kill)
        url = f"http://{bind}"
        wait_until(lambda: is_ready(url), 120)
        yield url


def is_ready(url: str) -> bool:
    try:
        figures = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=5).text
        return requests.get(f"{url}/ready", timeout=5).ok and f'workers_ready{{model="{STAND_IN}"}} 1.0' in figures
    except requests.RequestException:
        return False


def test_a_job_goes_its_whole_way_over_tls(guarded: GuardedRedis, api_url: str, coins: Path) -> None:
    with Receiver(tenant_secret(WEBHOOK_MASTER, "apiary")) as receiver:
        spec = (
            f'{{"mode": "box", "model": "{STAND_IN}", "prompts": [{{"box": [20, 20, 80, 80]}}],'
            f' "webhook": {{"url": "{receiver.url}", "events": ["succeeded"]}}}}'
        )
        with coins.open("rb") as image:
            answer = requests.post(
                f"{api_url}/v1/jobs",
                headers={"Authorization": f"Bearer {KEY}"},
                files={"job": (None, spec, "application/json"), "image": ("a.png", image, "image/png")},
                timeout=40,
            )
        assert answer.status_code == 202, answer.text
        told = receiver.wait_for(answer.json()["id"], 60)

    assert told.data.status == "succeeded"
    assert guarded.refusals() == []
    inspector = guarded.client("inspector")
    assert inspector.config_get("port") == {"port": "0"}
    # Each program has been seen, as its user and no other.
    users = {client["user"] for client in inspector.client_list()}
    assert {"api", "worker", "courier"} <= users


def test_a_server_of_an_authority_that_is_not_trusted_is_refused(guarded: GuardedRedis, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")

    for trusted in ({"redis_ca": str(tmp_path / "other.crt")}, {"redis_ca": ""}):
        refuses(guarded.settings("worker") | trusted)


def test_a_server_of_another_name_is_refused(guarded: GuardedRedis) -> None:
    url = guarded.url("worker").replace("@localhost:", "@127.0.0.1:")

    refuses(guarded.settings("worker") | {"redis_url": url})


def refuses(fields: dict[str, str]) -> None:
    """Check that neither the ledger's connection nor the broker's trusts the server."""
    settings = SharedSettings(**fields)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(settings).ping()
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        reach_broker(settings)


def reach_broker(settings: SharedSettings) -> None:
    with celery_app(settings).connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, interval_start=0)


def test_nobody_is_served_without_tls(guarded: GuardedRedis) -> None:
    settings = SharedSettings(redis_url=guarded.url("api", scheme="redis"))

    with pytest.raises(redis.ConnectionError):
        connect(settings).ping()
    with pytest.raises(OperationalError):
        reach_broker(settings)
