"""One job's trace and its request's id, through all programs of a running stack."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from maskfleet.stack.hook_server import HookServer
from maskfleet.stack.process import StackLine
from tests.collector import Collector, Received
from tests.scenes import plain_scene
from tests.waiting import wait_until

pytest.importorskip("opentelemetry.proto", reason="The extra otel is not installed.")

TRACE, PARENT = uuid.uuid4().hex, "00f067aa0ba902b7"
REQUEST = f"order-{uuid.uuid4().hex[:8]}"
#: A query as signed links have; nobody but the image's host may see it.
SIGNED = "X-Amz-Signature=" + "5" * 64


@dataclass(frozen=True)
class Run:
    """A job that ran, what its webhooks brought, and its spans."""

    view: dict[str, Any]
    hooks: list[tuple[dict[str, Any], Mapping[str, str]]]
    spans: list[Received]

    def one(self, name: str, **attributes: object) -> Received:
        found = [
            span
            for span in self.spans
            if span.name == name
            and all(span.attributes.get(f"maskfleet.{key}") == attributes[key] for key in attributes)
        ]
        assert len(found) == 1, (name, [span.name for span in self.spans])
        return found[0]

    def under(self, parent: Received) -> list[str]:
        return [span.name for span in self.spans if span.parent_id == parent.span_id]


@pytest.fixture(scope="module")
def run(running_stack: StackLine, collector: Collector) -> Run:
    hooks: list[tuple[dict[str, Any], Mapping[str, str]]] = []

    def take(body: bytes, headers: Mapping[str, str]) -> int:
        hooks.append((json.loads(body), {name.lower(): value for name, value in headers.items()}))
        return 500 if len(hooks) == 1 else 204

    with HookServer(take) as receiver:
        job = {
            "mode": "point",
            "prompts": [{"points": [[40, 40]]}],
            "outputs": ["coco", "png", "label_map"],
            "webhook": {"url": f"{receiver.url}hook?{SIGNED}"},
        }
        answer = requests.post(
            f"{running_stack.api_url}/v1/jobs",
            files={
                "job": (None, json.dumps(job), "application/json"),
                "image": ("a.png", plain_scene(1, (160, 128)).png),
            },
            headers={
                "Authorization": f"Bearer {running_stack.api_key}",
                "X-Request-Id": REQUEST,
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            },
            timeout=30,
        )
        assert answer.status_code == 202, answer.text
        assert answer.headers["X-Request-Id"] == REQUEST
        own = {"Authorization": f"Bearer {running_stack.api_key}"}
        url = f"{running_stack.api_url}/v1/jobs/{answer.json()['id']}"
        wait_until(lambda: len(hooks) == 2, 60)
        spans = collector.wait_for(TRACE, "attempt", "POST /v1/jobs", "webhook succeeded")
        view = requests.get(url, headers=own, timeout=30).json()
    return Run(view, hooks, wait_until(lambda: _whole(collector), 30) or spans)


def _whole(collector: Collector) -> list[Received]:
    """Return the job's spans once those of both delivery attempts, and of what was written after it, are there."""
    spans = collector.trace(TRACE)
    names = [span.name for span in spans]
    is_whole = names.count("webhook succeeded") == 2 and names.count("S3 PutObject") >= 6
    return spans if is_whole else []


def test_a_jobs_trace_leads_from_its_request_to_its_webhook(run: Run) -> None:
    post = run.one("POST /v1/jobs")

    assert (post.parent_id, post.kind, post.service, post.failed) == (PARENT, "server", "maskfleet-api", False)
    assert post.attributes["http.response.status_code"] == 202
    assert post.attributes["maskfleet.job_id"] == run.view["id"]
    assert post.attributes["maskfleet.request_id"] == REQUEST
    assert sorted(run.under(post)) == ["S3 PutObject", "attempt", "queue", "webhook succeeded", "webhook succeeded"]
    queue, attempt = run.one("queue"), run.one("attempt")
    assert queue.service == attempt.service == "maskfleet-worker"
    assert post.began_ns - 50e6 < queue.began_ns <= queue.ended_ns <= attempt.ended_ns  # by two programs' clocks
    assert attempt.kind == "consumer"
    assert attempt.instance == run.view["attempts"][0]["worker"]
    wanted = {"job_id": run.view["id"], "attempt": 1, "mode": "point", "model": run.view["model"]}
    assert {name: attempt.attributes[f"maskfleet.{name}"] for name in wanted} == wanted
    assert attempt.attributes["maskfleet.outcome"] == "job_succeeded"


def test_an_attempts_stages_are_spans_with_the_requests_that_they_made(run: Run) -> None:
    attempt = run.one("attempt")

    stages = [name for name in run.under(attempt) if not name.startswith("S3 ")]
    assert sorted(set(stages)) == [
        *("decode_image", "decode_prompts", "embed", "fetch", "measure"),
        *("output coco", "output label_map", "output masks", "upload"),
    ]
    assert run.under(run.one("fetch")) == ["S3 GetObject"]
    assert run.one("output masks").attributes["maskfleet.files"] == run.view["result"]["masks"]
    uploads = [span for span in run.spans if span.name == "upload"]
    assert [run.under(upload) for upload in uploads] == [["S3 PutObject"] * 3, ["S3 PutObject"]]
    manifest = next(span for span in run.spans if span.parent_id == uploads[1].span_id)
    assert manifest.attributes["aws.s3.key"] == run.view["result"]["manifest_key"]
    assert [span.name for span in run.spans if span.failed] == ["webhook succeeded"]  # not what was looked for in vain
    assert all(attempt.began_ns <= span.began_ns for span in run.spans if span.parent_id == attempt.span_id)


def test_a_webhooks_receiver_can_go_on_with_the_trace(run: Run) -> None:
    attempts = [span for span in run.spans if span.name == "webhook succeeded"]

    assert [(span.kind, span.service, span.failed) for span in attempts] == [
        ("client", "maskfleet-courier", True),
        ("client", "maskfleet-courier", False),
    ]
    assert [span.attributes["http.response.status_code"] for span in attempts] == [500, 204]
    assert [headers["traceparent"] for _, headers in run.hooks] == [
        f"00-{TRACE}-{span.span_id}-01" for span in attempts
    ]


def test_a_requests_id_reaches_the_record_the_webhook_and_the_logs(run: Run, running_stack: StackLine) -> None:
    logs = Path(running_stack.data) / "logs"
    lines = {name: _lines(logs / f"{name}.log", run.view["id"]) for name in ("api", "worker", "courier")}

    assert run.view["request_id"] == REQUEST
    assert [body["data"]["request_id"] for body, _ in run.hooks] == [REQUEST, REQUEST]
    assert {"job_created"} <= {line["event"] for line in lines["api"]}
    assert {"job_claimed", "job_succeeded"} <= {line["event"] for line in lines["worker"]}
    assert {"webhook_postponed", "webhook_delivered"} <= {line["event"] for line in lines["courier"]}
    for name, found in lines.items():
        assert {(line["request_id"], line["trace_id"]) for line in found} == {(REQUEST, TRACE)}, name


def test_no_span_says_what_is_secret(run: Run, running_stack: StackLine) -> None:
    said = json.dumps([[span.name, dict(span.attributes)] for span in run.spans])

    for secret in (SIGNED, running_stack.api_key, running_stack.s3_secret_key, running_stack.s3_access_key):
        assert secret not in said


def _lines(log: Path, job: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if f'"job_id": "{job}"' in line]
