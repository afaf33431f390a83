"""Redis as configured by deploy/redis: a user for each program with exactly the rights it needs; and TLS."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import requests
import trustme
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.messages import Publisher, celery_app
from maskfleet.jobs.settings import ApiSettings, SharedSettings
from maskfleet.stack.receiver import Receiver
from maskfleet.stack.servers import free_port, last_lines, redis_binary
from tests.conftest import WEBHOOK_MASTER
from tests.tls_relay import TlsRelay
from tests.waiting import wait_until

PROGRAMS = ("api", "worker", "courier", "operator")
KEY = "a-key-for-the-start-of-this-test"


@dataclass(frozen=True)
class GuardedRedis:
    """A Redis with the users of deploy/redis behind TLS, and one more user that may read everything."""

    port: int
    authorities: Path
    folder: Path
    server: subprocess.Popen[bytes]

    def url(self, user: str, *, password: str = "", scheme: str = "rediss") -> str:
        return f"{scheme}://{user}:{password or password_of(user)}@localhost:{self.port}/0"

    def settings(self, user: str, **fields: str) -> dict[str, str]:
        return {"redis_url": self.url(user), "redis_ca": str(self.authorities), **fields}

    def client(self, user: str) -> redis.Redis:
        return connect(SharedSettings(**self.settings(user)))

    def refusals(self) -> list[str]:
        """Return what users were refused since the last call."""
        inspector = self.client("inspector")
        entries = inspector.acl_log()
        inspector.acl_log_reset()
        return [f"{one['username']}: {one['reason']} {one['object']} ({one['context']})" for one in entries]


def password_of(user: str) -> str:
    return f"the-password-of-{user}-000"


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    setup = folder / "setup"
    shutil.copytree(repository / "deploy" / "redis", setup)
    with (setup / "users.acl").open("a") as users:
        users.write(f"user inspector on >{password_of('inspector')} ~* &* +@all\n")
    port = free_port()
    passwords = {f"REDIS_PASSWORD_{name.upper()}": password_of(name) for name in PROGRAMS}
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            ["sh", str(setup / "start.sh"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)],
            env={**os.environ, **passwords, "REDIS_SERVER": str(redis_binary()), "TMPDIR": str(folder)},
            stdout=log,
            stderr=log,
        )
    with TlsRelay(port, context) as relay:
        running = GuardedRedis(relay.port, folder / "ca.crt", folder, server)
        try:
            wait_until(lambda: answers(running), 30)
            yield running
        finally:
            server.kill()
            server.wait()


def answers(guarded: GuardedRedis) -> bool:
    assert guarded.server.poll() is None, last_lines(guarded.folder / "redis.log")
    try:
        return bool(guarded.client("inspector").ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def service(
    guarded: GuardedRedis, store_fields: dict[str, str], demo_model: str, tmp_path: Path
) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """The API, a worker and the courier, each as its own user; yields the API's address."""
    bind = f"127.0.0.1:{free_port()}"
    own = {
        "api": {
            "api_keys": f"apiary:{KEY}",
            "bind": bind,
            "processes": "1",
            "redis_wait_aof": "1",
            "webhook_master_secrets": WEBHOOK_MASTER,
        },
        "worker": {"node": "node-1", "lease_s": "2", "beat_s": "0.2", "canary_s": "1", "drain_grace_s": "0.5"},
        "courier": {
            "webhook_master_secrets": WEBHOOK_MASTER,
            "tick_s": "0.1",
            "sweep_s": "1",
            "webhook_schedule_s": "0,1,1",
        },
    }
    commands = {
        "api": ["-m", "maskfleet", "api"],
        "worker": ["-m", "maskfleet.worker"],
        "courier": ["-m", "maskfleet", "courier"],
    }
    with ExitStack() as ending:
        programs = {}
        for name, command in commands.items():
            fields = {**store_fields, "model": demo_model, "egress_allow_private": "1"}
            fields |= guarded.settings(name) | own[name]
            environment = {f"MASKFLEET_{field.upper()}": value for field, value in fields.items()}
            log = ending.enter_context((tmp_path / f"{name}.log").open("wb"))
            programs[name] = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
                stdout=log,
                stderr=log,
            )
            ending.callback(programs[name].wait)
            ending.callback(programs[name].kill)
        url = f"http://{bind}"
        wait_until(lambda: is_ready(url), 120)
        assert guarded.refusals() == []
        yield url, programs


def is_ready(url: str) -> bool:
    try:
        if requests.get(f"{url}/ready", timeout=5).status_code != 200:
            return False
        figures = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=5).text
    except requests.RequestException:
        return False
    return 'maskfleet_workers_ready{model="sam-demo"} 1.0' in figures


def test_each_program_does_its_work_as_its_own_user(
    guarded: GuardedRedis,
    service: tuple[str, dict[str, subprocess.Popen[bytes]]],
    store_fields: dict[str, str],
    repository: Path,
) -> None:
    url, programs = service
    as_operator = {
        f"MASKFLEET_{name.upper()}": value for name, value in (store_fields | guarded.settings("operator")).items()
    }

    def operate(*command: str) -> str:
        answer = subprocess.run(
            [sys.executable, "-m", "maskfleet", *command],
            env={**os.environ, **as_operator},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    # The operator creates a key, with which a caller does everything callers do.
    scopes = ("--scope", "jobs:read", "--scope", "jobs:write", "--scope", "webhooks:secret", "--scope", "fleet")
    key = operate("keys", "create", "--tenant", "apiary", *scopes)

    def ask(method: str, path: str, expected: int, wait_s: int = 0, **options: object) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}", "Prefer": f"wait={wait_s}"}
        answer = requests.request(method, url + path, headers=headers, timeout=40 + wait_s, **options)  # type: ignore[arg-type]  # requests' own
        assert answer.status_code == expected, answer.text
        return answer

    def job(data: bytes, spec: str, expected: int = 202) -> str:
        files = {"job": (None, spec, "application/json"), "image": ("a.png", data, "image/png")}
        return str(ask("POST", "/v1/jobs", expected, files=files).json()["id"])

    def status(job_id: str) -> str:
        return str(ask("GET", f"/v1/jobs/{job_id}", 200).json()["status"])

    photo = (repository / "examples" / "coins.png").read_bytes()
    box = '{"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}]%s}'
    first = ask("GET", "/v1/webhooks/secret", 200).json()["secret"]
    second = ask("POST", "/v1/webhooks/secret/rotate", 200, json={"overlap_s": 0}).json()["secret"]
    assert first != second
    with Receiver(second) as receiver:
        hook = f', "webhook": {{"url": "{receiver.url}", "events": ["succeeded", "failed"]}}'
        good, broken = job(photo, box % hook), job(photo[:5000], box % hook)
        assert guarded.refusals() == []  # otherwise its first sign would be a missed deadline
        wait_until(lambda: {status(good), status(broken)} == {"succeeded", "failed"}, 60)
        files = {"job": (None, box % ', "inline": "rle", "outputs": []', "application/json"), "image": ("a.png", photo)}
        clicked = ask("POST", "/v1/jobs", 200, wait_s=60, files=files).json()
        assert len(clicked["inline"]["masks"]) == 1
        assert receiver.wait_for(good, 30).data.status == "succeeded"
        assert receiver.wait_for(broken, 30).data.status == "failed"
        images = [{"base64": base64.b64encode(data).decode()} for data in (photo, photo[:5000])]
        prompts = [{"box": [20, 20, 80, 80]}]
        body = {"mode": "box", "prompts": prompts, "images": images, "webhook": {"url": receiver.url}}
        batch = ask("POST", "/v1/batches", 202, json=body).json()
        wait_until(lambda: "batch.completed" in {event.type for event in receiver.events}, 60)
        ask("POST", f"/v1/jobs/{batch['job_ids'][1]}/retry", 202)
        wait_until(lambda: len(ask("GET", f"/v1/batches/{batch['id']}/deliveries", 200).json()["deliveries"]) == 2, 60)
        assert ask("GET", f"/v1/batches/{batch['id']}", 200).json()["counts"]["failed"] == 1
        ask("POST", f"/v1/jobs/{broken}/retry", 202)
        wait_until(lambda: status(broken) == "failed", 60)
        slow = job(photo, '{"mode": "everything", "params": {"points_per_batch": 1}}')
        wait_until(lambda: status(slow) == "processing", 60)
        ask("POST", f"/v1/jobs/{slow}/cancel", 202)
        wait_until(lambda: status(slow) == "canceled", 60)
        ask("GET", f"/v1/jobs/{good}/result", 200)
        ask("GET", "/v1/fleet/model", 200)
        fleet = requests.get(f"{url}/v1/fleet", headers={"Authorization": f"Bearer {KEY}"}, timeout=5).json()
        assert [(worker["node"], worker["model"]) for worker in fleet["workers"]] == [("node-1", "sam-demo")]
        ask("GET", "/v1/jobs", 200)
        deliveries = ask("GET", f"/v1/jobs/{good}/deliveries", 200).json()
        assert deliveries
        ask("DELETE", f"/v1/jobs/{good}", 204)

    # A job is handed back by a worker that shuts down, and the operator cleans up.
    slow = job(photo, '{"mode": "everything", "params": {"points_per_batch": 1}}')
    wait_until(lambda: status(slow) == "processing", 60)
    programs["worker"].terminate()
    assert programs["worker"].wait(30) == 0
    assert status(slow) == "queued"
    assert "apiary" in operate("keys", "list")
    operate("sweep", "--dry-run")
    # As in a ledger that predates versions, where waiting jobs were in an outbox.
    guarded.client("inspector").delete("mf:schema")
    guarded.client("inspector").zadd("mf:outbox", {slow: 0})
    assert operate("ledger", "upgrade").startswith("done: version 1,")
    operate("keys", "revoke", key.split("_")[1])

    # The courier has swept by now, and no program has used what it may not.
    wait_until(lambda: guarded.client("inspector").exists("mf:swept"), 30)
    assert guarded.refusals() == []


Attempt = Callable[[redis.Redis], object]

FORBIDDEN: dict[str, tuple[str, Attempt]] = {
    "the API makes itself a key": ("api", lambda client: client.hset("mf:key:0123456789ab", "tenant", "apiary")),
    "the API listens to another channel": (
        "api",
        lambda client: (channel := client.pubsub()).subscribe("anything") or channel.get_message(timeout=5),
    ),
    **{
        f"{user} hears of ends": (
            user,
            lambda client: (channel := client.pubsub()).subscribe("mf:ended") or channel.get_message(timeout=5),
        )
        for user in ("worker", "courier", "operator")
    },
    "the operator announces an end": ("operator", lambda client: client.publish("mf:ended", "job_0")),
    "the API lists keys": ("api", lambda client: client.zrange("mf:keys", 0, -1)),
    "the API takes a message": ("api", lambda client: client.rpop("sam.sam-demo.normal")),
    "the API reads messages": ("api", lambda client: client.lrange("sam.sam-demo.normal", 0, -1)),
    "the API drops what workers hold": ("api", lambda client: client.delete("unacked")),
    "the API plays a worker": ("api", lambda client: client.hset("mf:worker:node-1", "model", "mine")),
    "the worker reads a key": ("worker", lambda client: client.hgetall("mf:key:0123456789ab")),
    "the worker reads a tenant's list": ("worker", lambda client: client.zrange("mf:jobs:apiary", 0, -1)),
    "the worker lifts a limit": ("worker", lambda client: client.delete("mf:limits:LIMITS:key")),
    "the worker enables an endpoint": ("worker", lambda client: client.delete("mf:disabled:apiary:0")),
    "the courier reads a key": ("courier", lambda client: client.hgetall("mf:key:0123456789ab")),
    "the courier rotates a secret": (
        "courier",
        lambda client: client.zadd("mf:webhook_secrets:apiary", {"mine": 9e15}),
    ),
    "the worker rotates a secret": ("worker", lambda client: client.zadd("mf:webhook_secrets:apiary", {"mine": 9e15})),
    "the worker sets the clock": ("worker", lambda client: client.set("mf:clock", "0 1")),
    "the API sets the clock": ("api", lambda client: client.set("mf:clock", "0 1")),
    "the courier drains a worker": ("courier", lambda client: client.set("mf:draining:node-1", 0)),
    "the courier blocks": ("courier", lambda client: client.brpop(["sam.sam-demo.normal"], 1)),
    "the operator changes a job": ("operator", lambda client: client.hset("mf:job:job_0", "status", "queued")),
    "the operator publishes": ("operator", lambda client: client.lpush("sam.sam-demo.normal", "{}")),
    **{
        f"{user} {what}": (user, attempt)
        for user in PROGRAMS
        for what, attempt in {
            "empties Redis": lambda client: client.flushall(),
            "lists all keys": lambda client: client.keys("*"),
            "walks through all keys": lambda client: client.scan(),
            "changes the settings": lambda client: client.config_set("maxmemory-policy", "allkeys-lru"),
            "reads the settings": lambda client: client.config_get("*"),
            "makes a user": lambda client: client.acl_setuser("mine", enabled=True),
            "watches the others": lambda client: client.execute_command("MONITOR"),
            "stops Redis": lambda client: client.execute_command("SHUTDOWN", "NOSAVE"),
            "makes a replica of it": lambda client: client.replicaof("127.0.0.1", "1"),
            "gets around it by a script": lambda client: client.evalsha(
                client.script_load("return redis.call('GET', 'mf:else')"), 0
            ),
            "publishes to a channel": lambda client: client.publish("anything", "x"),
        }.items()
    },
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nobody_does_what_is_not_theirs(guarded: GuardedRedis, name: str) -> None:
    user, attempt = FORBIDDEN[name]

    with pytest.raises((redis.exceptions.NoPermissionError, redis.ResponseError), match=r"(?i)permission|NOPERM"):
        attempt(guarded.client(user))

    assert guarded.server.poll() is None


def test_the_api_may_move_the_window_of_a_rate_limit_on(guarded: GuardedRedis) -> None:
    """The library renames the present window's key to the previous one's."""
    client = guarded.client("api")
    client.set("mf:limits:now", 1)

    client.rename("mf:limits:now", "mf:limits:before")

    assert client.get("mf:limits:before") == "1"


def test_without_a_password_one_may_ask_whether_it_lives(guarded: GuardedRedis) -> None:
    url = f"rediss://localhost:{guarded.port}/0"
    with redis.Redis.from_url(url, ssl_ca_certs=str(guarded.authorities), retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()
        for attempt in (lambda: client.get("mf:job:1"), lambda: client.info(), lambda: client.time()):
            with pytest.raises(redis.exceptions.NoPermissionError):
                attempt()


def test_a_wrong_password_opens_nothing(guarded: GuardedRedis) -> None:
    settings = guarded.settings("api") | {"redis_url": guarded.url("api", password="the-password-of-worker-000")}

    with pytest.raises(redis.AuthenticationError):
        connect(SharedSettings(**settings)).ping()


def test_a_server_whose_certificate_is_a_strangers_gets_no_password_and_no_message(
    guarded: GuardedRedis, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    settings = SharedSettings(**guarded.settings("api") | {"redis_ca": str(tmp_path / "other.crt")})

    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(settings).ping()
    with pytest.raises(QueueUnavailable):
        Publisher(settings).publish("job_1", "sam.sam-demo.normal")
    with celery_app(settings).connection_for_write() as broker, pytest.raises(OperationalError, match="CERTIFICATE"):
        broker.ensure_connection(max_retries=1, timeout=2)


def test_nobody_is_served_without_tls(guarded: GuardedRedis) -> None:
    with pytest.raises(redis.ConnectionError):
        connect(SharedSettings(redis_url=guarded.url("api", scheme="redis"))).ping()


def test_authorities_for_a_connection_without_tls_are_a_mistake() -> None:
    with pytest.raises(ValidationError, match="nothing would be encrypted"):
        ApiSettings(redis_url="redis://localhost/0", redis_ca="/tls/ca.crt")


def test_redis_does_not_start_with_a_short_password(repository: Path) -> None:
    passwords = {f"REDIS_PASSWORD_{name.upper()}": password_of(name) for name in PROGRAMS}
    environment = {**os.environ, **passwords, "REDIS_PASSWORD_WORKER": "short", "REDIS_SERVER": "true"}
    start = repository / "deploy" / "redis" / "start.sh"

    answer = subprocess.run(["sh", str(start)], env=environment, capture_output=True, text=True, check=False)

    assert answer.returncode != 0
    assert "shorter than 16" in answer.stderr
