"""What a real stack writes at its most verbose: it contains no secret, and a job can be traced by its id."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
import requests

from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.messages import celery_app
from maskfleet.jobs.settings import ApiSettings, CourierSettings, SharedSettings, WorkerSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.process import StackProcess
from maskfleet.stack.servers import start_redis
from tests.conftest import WEBHOOK_MASTER, WEBHOOK_SECRET
from tests.waiting import wait_until

PASSWORD = secrets.token_hex(16)
#: A key that a stranger tries, and a secret in the URLs that a caller supplies.
WRONG_KEY = f"wrong-{secrets.token_hex(16)}"
TOKEN = f"token-{secrets.token_hex(16)}"
SECRETS = (PASSWORD, TOKEN, WRONG_KEY, *(text.removeprefix("whsec_") for text in (WEBHOOK_MASTER, WEBHOOK_SECRET)))


@dataclass(frozen=True)
class Traces:
    """All that was written, by location, and all that must not be in it.  job_id: of the job that succeeded."""

    job_id: str
    logs: dict[str, str]
    ledger: dict[str, str]
    answers: dict[str, str]
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, demo_model: str, repository: Path) -> Iterator[Traces]:
    folder = tmp_path_factory.mktemp("secrets")
    server = start_redis(folder / "redis", log=folder / "redis.log")
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", PASSWORD)
    url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
    settings = {
        "MASKFLEET_MODEL": demo_model,
        "MASKFLEET_REDIS_URL": url,
        "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1",
        "MASKFLEET_WEBHOOK_MASTER_SECRETS": WEBHOOK_MASTER,
        "MASKFLEET_WEBHOOK_SCHEDULE_S": "0,0.2",
        "MASKFLEET_LOG_LEVEL": "DEBUG",
    }
    try:
        with StackProcess(folder / "stack", settings) as stack:
            line = stack.line
            photo = (repository / "examples" / "coins.png").read_bytes()
            with image_host() as host:
                found = walk(line.api_url, host, url, photo)
            found.secrets.update({"S3's secret key": line.s3_secret_key, "the stack's API key": line.api_key})
            with closing(connect(SharedSettings(redis_url=url))) as client:
                found.ledger.update({key: read(client, key) for key in client.scan_iter()})
        paths = [stack.log, *(folder / "stack" / "logs").glob("*.log"), folder / "redis.log"]
        found.logs.update({path.name: path.read_text(errors="replace") for path in paths})
        yield found
    finally:
        server.stop()


@contextmanager
def image_host() -> Iterator[str]:
    """Yield the URL of a web host that holds no image: ``/page`` is a text, and all else is not found."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/page")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"text\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def walk(api: str, host: str, redis_url: str, photo: bytes) -> Traces:
    """Do what callers do, correctly and incorrectly.  host: of images, and not one of the service's own servers."""
    answers: dict[str, str] = {}
    made = subprocess.run(
        [sys.executable, "-m", "maskfleet", "keys", "create", "--tenant", "local", "--scope", "admin"],
        env={**os.environ, "MASKFLEET_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    def ask(method: str, path: str, **options: object) -> requests.Response:
        with_key = {"headers": {"Authorization": f"Bearer {made}"}, **options}
        answer = requests.request(method, api + path, timeout=40, **with_key)  # type: ignore[arg-type]  # requests' own
        answers[f"{method} {path} {len(answers)}"] = answer.text
        return answer

    def job(image: dict[str, str]) -> str:
        hook = {"url": f"http://127.0.0.1:9/hook?secret={TOKEN}", "events": ["succeeded", "failed"]}
        body = {"mode": "box", "image": image, "prompts": [{"box": [20, 20, 80, 80]}], "webhook": hook}
        answer = ask("POST", "/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def has_ended(job_id: str) -> bool:
        return ask("GET", f"/v1/jobs/{job_id}").json()["status"] in ("succeeded", "failed")

    upload = ask("POST", "/v1/uploads", json={"content_type": "image/png", "size": len(photo)}).json()
    sent = requests.request(upload["method"], upload["url"], headers=upload["headers"], data=photo, timeout=40)
    assert sent.ok, sent.text
    good = job({"upload_id": upload["upload_id"]})
    rotation = requests.post(
        f"{api}/v1/webhooks/secret/rotate", json={}, headers={"Authorization": f"Bearer {made}"}, timeout=40
    ).json()
    assert rotation["earlier"][0]["secret"] == WEBHOOK_SECRET
    refused = requests.get(f"{api}/v1/jobs", headers={"Authorization": f"Bearer {WRONG_KEY}"}, timeout=40)
    assert refused.status_code == 401
    broken = [
        job({"url": f"{host}/page?X-Amz-Signature={TOKEN}"}),
        job({"url": f"http://127.0.0.1:9/away.png?X-Amz-Signature={TOKEN}"}),
        job({"url": f"{host}/nowhere?X-Amz-Signature={TOKEN}"}),
    ]
    own = {"mode": "everything", "image": {"url": f"{api}/live?X-Amz-Signature={TOKEN}"}}
    assert ask("POST", "/v1/jobs", json=own).json()["code"] == "url_not_allowed"
    wait_until(lambda: has_ended(good) and has_ended(broken[0]) and has_ended(broken[2]), 90, every_s=0.3)
    result = requests.get(f"{api}/v1/jobs/{good}/result", headers={"Authorization": f"Bearer {made}"}, timeout=40).text
    wait_until(lambda: '"given_up"' in ask("GET", f"/v1/jobs/{good}/deliveries").text, 60, every_s=0.3)
    ask("POST", "/v1/jobs", data=b"{", headers={"Authorization": f"Bearer {made}", "Content-Type": "application/json"})
    for path in ("/v1/jobs", "/v1/jobs/job_0", "/metrics", "/ready", "/openapi.json"):
        ask("GET", path)
    signatures = re.findall(r"X-Amz-Signature=([0-9a-f]{64})", result)
    assert signatures
    hidden = {
        **{f"signature {number}": text for number, text in enumerate(signatures)},
        "the signature of the upload": re.findall(r"X-Amz-Signature=([0-9a-f]{64})", upload["url"])[0],
        "the key that was made": made,
        "the key that was tried": WRONG_KEY,
        "the master of the webhook secrets": WEBHOOK_MASTER.removeprefix("whsec_"),
        "the first webhook secret": WEBHOOK_SECRET.removeprefix("whsec_"),
        "the second webhook secret": rotation["secret"].removeprefix("whsec_"),
        "the password of Redis": PASSWORD,
    }
    return Traces(good, {}, {}, answers, hidden)


def read(client: redis.Redis, key: str) -> str:
    """All that is under a key, and its name."""
    readers = {
        "hash": client.hgetall,
        "string": client.get,
        "list": lambda name: client.lrange(name, 0, -1),
        "set": client.smembers,
        "zset": lambda name: client.zrange(name, 0, -1, withscores=True),
    }
    kind = str(client.type(key))
    return f"{key} {readers[kind](key) if kind in readers else ''}"


def places(of: dict[str, str], secret: str) -> list[str]:
    """Where a secret stands, with what stands before it."""
    return [
        f"{name}: …{text[max(0, text.find(secret) - 120) : text.find(secret)]}"
        for name, text in of.items()
        if secret in text
    ]


def test_no_log_shows_a_secret(traces: Traces) -> None:
    written = {name for name, text in traces.logs.items() if text}
    assert {"api.log", "worker.log", "courier.log", "s3.log", "redis.log", "up.log"} <= written
    assert "Starting S3 API Server" in traces.logs["s3.log"]  # not the little alone that it tells a terminal
    assert '"level": "debug"' in "".join(traces.logs.values())
    hidden = {**traces.secrets, "a caller's own signature": TOKEN}

    assert {name: places(traces.logs, secret) for name, secret in hidden.items() if places(traces.logs, secret)} == {}


def test_a_jobs_whole_life_is_in_the_lines_with_its_id(traces: Traces) -> None:
    written = (json.loads(line) for log in traces.logs.values() for line in log.splitlines() if line.startswith("{"))
    lines = [line for line in written if re.fullmatch("[a-z_]+", line["event"])]  # the libraries write sentences

    life = sorted((line for line in lines if line.get("job_id") == traces.job_id), key=lambda line: line["timestamp"])

    assert [(line["program"], line["event"]) for line in life] == [
        ("api", "job_created"),
        ("worker", "job_claimed"),
        ("worker", "job_succeeded"),
        ("courier", "webhook_postponed"),
        ("courier", "webhook_given_up"),
    ]
    assert {line["attempt"] for line in life if line["program"] == "worker"} == {1}
    assert len({line["delivery_id"] for line in life if line["program"] == "courier"}) == 1
    nameless = [line["event"] for line in lines if traces.job_id in json.dumps(line) and line not in life]
    assert nameless == []


def test_the_ledger_holds_no_secret_of_the_service(traces: Traces) -> None:
    assert any(key.startswith("mf:tries:") for key in traces.ledger)

    shown = {name: places(traces.ledger, secret) for name, secret in traces.secrets.items()}

    assert {name: found for name, found in shown.items() if found} == {}


def test_no_answer_shows_a_secret_but_the_link_that_was_asked_for(traces: Traces) -> None:
    hidden = {name: secret for name, secret in traces.secrets.items() if "signature" not in name}

    shown = {name: places(traces.answers, secret) for name, secret in hidden.items()}

    assert {name: found for name, found in shown.items() if found} == {}


def test_nothing_that_is_printed_in_a_trace_shows_a_secret() -> None:
    fields = {
        "redis_url": f"redis://:{PASSWORD}@127.0.0.1:1/0",
        "s3_endpoint": "http://127.0.0.1:1",
        "s3_access_key": "access",
        "s3_secret_key": TOKEN,
    }
    things: list[object] = [
        ApiSettings(**fields, api_keys=f"me:{WRONG_KEY}", webhook_master_secrets=WEBHOOK_MASTER),
        CourierSettings(**fields, webhook_master_secrets=WEBHOOK_MASTER, webhook_shared_secrets=WEBHOOK_SECRET),
        WorkerSettings(**fields),
    ]
    shared = SharedSettings(**fields)
    app = celery_app(shared)
    things += [shared, connect(shared), Store(shared), app, app.connection_for_write()]

    for thing in things:
        for text in (repr(thing), str(thing)):
            for secret in SECRETS:
                assert secret not in text, type(thing)
