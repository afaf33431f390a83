"""A caller of the API, and checks that apply to every response."""

from __future__ import annotations

import base64
import functools
import io
import re
import socket
from collections.abc import Iterator
from typing import Any

from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.api import Problem
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile, MaskSummary
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.storage import Store, attempt_prefix, result_prefix
from tests import taking
from tests.api.pictures import a_picture


class Caller:
    """A tenant's client of the app."""

    def __init__(self, app: Flask, key: str) -> None:
        self.app, self.key = app, key
        self._client = app.test_client()
        self._headers = {"Authorization": f"Bearer {key}"}

    def get(self, path: str, **headers: str) -> TestResponse:
        return self._client.get(path, headers={**self._headers, **_spelled(headers)})

    def post(self, path: str, body: object = None, **headers: str) -> TestResponse:
        return self._client.post(path, json=body, headers={**self._headers, **_spelled(headers)})

    def delete(self, path: str) -> TestResponse:
        return self._client.delete(path, headers=self._headers)

    def post_bytes(self, path: str, body: bytes, content_type: str = "application/json") -> TestResponse:
        return self._client.post(path, data=body, content_type=content_type, headers=self._headers)

    def post_parts(self, parts: list[tuple[str, Any]], path: str = "/v1/jobs", **headers: str) -> TestResponse:
        """Send multipart/form-data.  A part's value is text, or (bytes, file name, content type)."""
        boundary = "a-line-between-parts"
        body = io.BytesIO()
        for name, value in parts:
            content, file_name, kind = value if isinstance(value, tuple) else (value.encode(), None, None)
            body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode())
            body.write(f'; filename="{file_name}"\r\nContent-Type: {kind}'.encode() if file_name else b"")
            body.write(b"\r\n\r\n" + content + b"\r\n")
        body.write(f"--{boundary}--\r\n".encode())
        return self._client.post(
            path,
            data=body.getvalue(),
            content_type=f"multipart/form-data; boundary={boundary}",
            headers={**self._headers, **_spelled(headers)},
        )

    def send(self, job: dict[str, Any], **headers: str) -> TestResponse:
        return self.post("/v1/jobs", job, **headers)

    def a_job(self, **fields: Any) -> str:  # Any: JSON
        """Send a job that is accepted; return its id."""
        response = self.send(job(**fields))
        assert response.status_code == 202, response.text
        return str(response.json["id"])


#: A value for each variable part of a path, where it does not matter.
UNKNOWN = {
    "job_id": "job_" + "0" * 32,
    "image_id": f"img_{'0' * 32}",
    "batch_id": f"batch_{'0' * 32}",
    "delivery_id": f"msg_job_{'0' * 32}_1_failed",
    "name": "coco.json",
}


def routes(app: Flask) -> Iterator[tuple[str, Rule]]:
    """Yield every route with its method, taken from the app, so that a new one cannot be forgotten."""
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, rule


def open_route(
    app: Flask, method: str, rule: Rule, key: str | None, ids: dict[str, str], query: str = ""
) -> TestResponse:
    """Send a request to a route.  ids: for the variable parts of its path.  query: with its question mark."""
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: ids[found[1]], rule.rule)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return app.test_client().open(path + query, method=method, json={}, headers=headers)


def job(**fields: Any) -> dict[str, Any]:  # Any: JSON
    """Return the body of a valid job, with a test's own changes."""
    return {"mode": "everything", "image": {"base64": as_base64(a_picture())}, **fields}


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check_problem(response: TestResponse, status: int, code: str) -> Problem:
    """Check that a response is a complete problem document, with a code that the OpenAPI document lists."""
    assert response.content_type == "application/problem+json", response.text
    problem = Problem.model_validate_json(response.data)
    assert (response.status_code, problem.code) == (status, code), response.text
    assert problem.status == status
    assert problem.type == f"urn:maskfleet:problem:{code}"
    assert problem.instance == f"urn:maskfleet:request:{response.headers['X-Request-Id']}"
    path = re.sub(r"/jobs/[^/]+", "/jobs/{job_id}", response.request.path)
    path = re.sub(r"/images/[^/]+", "/images/{image_id}", path)
    path = re.sub(r"/batches/[^/]+", "/batches/{batch_id}", path)
    path = re.sub(r"/files/.+", "/files/{name}", path)
    path = re.sub(r"/deliveries/(?!redeliver$)[^/]+", "/deliveries/{delivery_id}", path)
    if code not in ("route_not_found", "method_not_allowed"):
        described = _described()["paths"][path][response.request.method.lower()]["responses"]
        assert code in described[str(status)]["content"]["application/problem+json"]["examples"]
    return problem


@functools.cache
def _described() -> Any:  # Any: the OpenAPI document
    return create_app(ApiSettings()).test_client().get("/openapi.json").json


def run_to_success(job_id: str, ledger: Ledger, store: Store) -> Manifest:
    """Act as a worker: claim the job, write its objects, finish it."""
    record = claim(job_id, ledger)
    prefix = attempt_prefix(record.tenant, job_id, record.attempt, record.fence, record.token)
    store.put(f"{prefix}/coco.json", b'{"annotations": []}', "application/json")
    store.put(f"{prefix}/masks/0000.png", b"a mask", "image/png")
    files = [("coco.json", 19, "application/json"), ("masks/0000.png", 6, "image/png")]
    manifest = Manifest(
        job_id=job_id,
        attempt=record.attempt,
        mode="everything",
        model="sam-demo",
        created_at="2026-01-01T00:00:00Z",
        image_width=64,
        image_height=48,
        masks=(MaskSummary(area=9, bbox=(1, 2, 3, 3), predicted_iou=0.9, stability_score=0.95),),
        files=tuple(
            ManifestFile(name=name, key=f"{prefix}/{name}", size=size, sha256="0" * 64, content_type=kind)
            for name, size, kind in files
        ),
        metrics=Metrics(),
    )
    manifest_key = f"{result_prefix(record.tenant, job_id)}/manifest.json"
    store.put(manifest_key, manifest.model_dump_json().encode(), "application/json")
    summary = ResultSummary(prefix=prefix, manifest_key=manifest_key, masks=1, best_score=0.9, metrics=Metrics())
    ledger.succeed(record, summary)
    return manifest


def claim(job_id: str, ledger: Ledger) -> JobRecord:
    record = taking.claim(ledger, job_id, "a-worker")
    assert record is not None
    return record


def a_closed_port() -> int:
    """Return a local port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _spelled(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
