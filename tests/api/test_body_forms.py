"""The forms of a body that other programs write are accepted, or refused with what to do."""

from __future__ import annotations

import base64
import gzip
import json
import textwrap
from collections.abc import Callable

import pytest
import redis
from flask.testing import FlaskClient

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.storage import Store, upload_key
from tests.api.caller import Caller, as_base64, check_problem, job
from tests.api.conftest import KEYS
from tests.api.pictures import a_picture

BOM = b"\xef\xbb\xbf"
#: Its base64 has characters that differ between the alphabets, and padding.
PICTURE = a_picture((61, 47), "PNG") + b"\xff\xef\xbe\xfb" * 2

FORMS: dict[str, Callable[[bytes], str]] = {
    "standard": as_base64,
    "a canvas's data: URL": lambda data: f"data:image/png;base64,{as_base64(data)}",
    "a data: URL without a type": lambda data: f"data:;base64,{as_base64(data)}",
    "a data: URL with a parameter, in capitals": lambda data: f"DATA:image/png;name=a.png;BASE64,{as_base64(data)}",
    "wrapped at 76 columns, as base64 does": lambda data: base64.encodebytes(data).decode(),
    "wrapped at 64 columns, as PEM does": lambda data: "\r\n".join(textwrap.wrap(as_base64(data), 64)),
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "without padding": lambda data: as_base64(data).rstrip("="),
    "a wrapped data: URL": lambda data: f"data:image/png;base64,\n{base64.encodebytes(data).decode()}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_base64_is_the_same_image(
    apiary: Caller, redis_client: redis.Redis, store: Store, form: str
) -> None:
    assert len(PICTURE) % 3
    assert set("+/=") <= set(as_base64(PICTURE))

    shown = apiary.send(job(image={"base64": FORMS[form](PICTURE)}))

    assert shown.status_code == 202, shown.text
    spec = json.loads(str(redis_client.hget(f"mf:job:{shown.json['id']}", "spec")))
    upload_id = spec["image"]["upload_id"]
    assert store.read(upload_key("apiary", upload_id)) == PICTURE


def test_a_batch_takes_the_same_forms(apiary: Caller) -> None:
    images = [{"base64": form(PICTURE)} for form in FORMS.values()]

    assert apiary.post("/v1/batches", {"mode": "everything", "images": images}).status_code == 202


@pytest.mark.parametrize(
    "text",
    [
        "%%%",
        "iVBORw0KGgo=A",
        "iVBORw0KG===",
        "iVBOR",
        "data:image/png,iVBORw0KGgo=",
        "data:image/png;base64",
        "data:text/plain;base64,data:image/png;base64,iVBORw0KGgo=",
        "iVBORw0KGg\u00e9=",
        "iVBORw0KGgo\u00a0=",
    ],
)
def test_what_is_not_base64_is_refused_with_the_forms_that_are(apiary: Caller, text: str) -> None:
    problem = check_problem(apiary.send(job(image={"base64": text})), 422, "invalid_spec")

    assert [(fault.pointer, fault.code) for fault in problem.errors or ()] == [("/image/base64", "invalid_base64")]
    assert "data: URL" in problem.detail


def test_a_byte_order_mark_is_skipped(apiary: Caller, ledger: Ledger) -> None:
    spec = BOM + json.dumps(job()).encode()
    parts = [("job", (BOM + b'{"mode": "everything"}', "job.json", "application/json"))]
    image = ("image", (a_picture(), "bee.jpg", "image/jpeg"))

    assert apiary.post_bytes("/v1/jobs", spec).status_code == 202
    assert apiary.post_parts([*parts, image]).status_code == 202
    batch = {"mode": "everything", "images": [job()["image"]]}
    assert apiary.post_bytes("/v1/batches", BOM + json.dumps(batch).encode()).status_code == 202
    upload = b'{"content_type": "image/png", "size": 10}'
    assert apiary.post_bytes("/v1/uploads", BOM + upload).status_code == 201


def test_two_marks_are_no_json(apiary: Caller) -> None:
    check_problem(apiary.post_bytes("/v1/jobs", BOM + BOM + json.dumps(job()).encode()), 400, "malformed_json")


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "x"])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/batches", "/v1/uploads", "/v1/webhooks/ping"])
def test_a_compressed_body_is_refused_with_what_to_do(client: FlaskClient, path: str, coding: str) -> None:
    response = client.post(
        path,
        data=gzip.compress(json.dumps(job()).encode()),
        headers={"Authorization": f"Bearer {KEYS['apiary']}", "Content-Encoding": coding},
        content_type="application/json",
    )

    problem = check_problem(response, 415, "content_encoding_not_supported")
    assert "without that header" in problem.detail
    assert response.headers["Accept-Encoding"] == "identity"


def test_a_compressed_multipart_body_is_refused_likewise(apiary: Caller) -> None:
    parts = [("job", '{"mode": "everything"}'), ("image", (a_picture(), "bee.jpg", "image/jpeg"))]

    response = apiary.post_parts(parts, Content_Encoding="gzip")

    check_problem(response, 415, "content_encoding_not_supported")


def test_a_body_that_says_it_is_not_compressed_is_taken(apiary: Caller) -> None:
    assert apiary.send(job(), Content_Encoding="Identity").status_code == 202
