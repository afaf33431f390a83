"""Bad input that is detectable immediately: a clear problem document, nothing recorded, never a 500."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings, strategies as st

from maskfleet.api.app import create_app
from maskfleet.api.request_body import MAX_SPEC_BYTES
from maskfleet.jobs.ledger.jobs import Ledger
from tests.api.caller import Caller, as_base64, check_problem, job
from tests.api.conftest import KEYS, SettingsMaker
from tests.api.pictures import HTML_PAGE, a_decompression_bomb, a_picture

POINT = {"points": [[10, 10]]}
UNKNOWN_UPLOAD = "upl_" + "0" * 32


@pytest.fixture(autouse=True)
def _nothing_is_recorded(redis_client: redis.Redis) -> Iterator[None]:
    yield
    assert redis_client.keys("mf:*") == []


BAD_SPECS = {
    "an unknown field": (job(colour="red"), "/colour"),
    "an unknown parameter": (job(params={"points": 3}), "/params/points"),
    "no mode": ({"image": {"url": "https://example.com/a.jpg"}}, ""),
    "an unknown mode": (job(mode="polygon"), ""),
    "mode everything with prompts": (job(prompts=[POINT]), "/prompts"),
    "mode point without prompts": (job(mode="point"), "/prompts"),
    "mode point with no prompt in the list": (job(mode="point", prompts=[]), "/prompts"),
    "mode point with a box": (job(mode="point", prompts=[{"box": [1, 1, 9, 9]}]), ""),
    "mode box without a box": (job(mode="box", prompts=[POINT]), ""),
    "labels and points of different length": (job(mode="point", prompts=[{**POINT, "labels": [1, 0]}]), "/prompts/0"),
    "a label that is neither 0 nor 1": (job(mode="point", prompts=[{**POINT, "labels": [2]}]), "/prompts/0/labels/0"),
    "an inverted box": (job(mode="box", prompts=[{"box": [9, 9, 1, 1]}]), "/prompts/0"),
    "an empty box": (job(mode="box", prompts=[{"box": [5, 5, 5, 9]}]), "/prompts/0"),
    "a point of three numbers": (job(mode="point", prompts=[{"points": [[1, 2, 3]]}]), "/prompts/0/points/0"),
    "a threshold above one": (job(params={"pred_iou_thresh": 1.5}), "/params/pred_iou_thresh"),
    "a number as a text": (job(run_timeout_s="60"), "/run_timeout_s"),
    "a truth value as a number": (job(params={"crops_n_layers": True}), "/params/crops_n_layers"),
    "a huge whole number": (job(run_timeout_s=10**4000), "/run_timeout_s"),
    "a bad s3 URI": (job(image={"s3_uri": "photos/bee.jpg"}), "/image/s3_uri"),
    "an s3 URI with a NUL": (job(image={"s3_uri": "s3://photos/\0"}), "/image/s3_uri"),
    "a URL of another scheme": (job(image={"url": "file:///etc/passwd"}), "/image/url"),
    "an upload id that cannot be": (job(image={"upload_id": "../../other"}), "/image/upload_id"),
    "base64 that is none": (job(image={"base64": "%%%"}), "/image/base64"),
    "two sources of the image": (job(image={"base64": "", "url": "https://example.com/a.jpg"}), "/image"),
    "no source of the image": (job(image={}), "/image"),
    "a webhook that is no URL": (job(webhook={"url": "mail me"}), "/webhook/url"),
    "metadata that is no text": (job(metadata={"order": 42}), "/metadata/order"),
    "a text in place of a job": ("a job", ""),
    "nothing in place of a job": (None, ""),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_spec_at_fault_is_refused_with_a_pointer_to_the_field(apiary: Caller, name: str) -> None:
    body, pointer = BAD_SPECS[name]

    response = apiary.post_bytes("/v1/jobs", json.dumps(body).encode())

    problem = check_problem(response, 422, "invalid_spec")
    assert problem.errors is not None
    assert pointer in [fault.pointer for fault in problem.errors]


def test_every_field_at_fault_is_named(apiary: Caller) -> None:
    problem = check_problem(apiary.send(job(priority="urgent", run_timeout_s=0, colour="red")), 422, "invalid_spec")

    assert problem.errors is not None
    assert {fault.pointer for fault in problem.errors} == {"/priority", "/run_timeout_s", "/colour"}


def test_a_refusal_stays_short_however_much_is_wrong(apiary: Caller) -> None:
    prompts = [{"points": [["x", "y"]] * 256}] * 200

    for body in (job(mode="m" * 1_000_000), job(mode="point", prompts=prompts), job(**{"f" * 1_000_000: 1})):
        response = apiary.send(body)
        check_problem(response, 422, "invalid_spec")
        assert len(response.data) < 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\x00",
        b"\xff\xfe\x00",
        b'{"mode": "everything", "metadata": {"a": "\xff"}}',
        b'{"mode": "everything", "metadata": {"a": "\\ud800"}}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"mode": "everything", "run_timeout_s": ' + b"9" * 100_000 + b"}",
        b'{"mode": "everything"} {"mode": "everything"}',
        b"mode=everything",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_not_json_is_malformed(apiary: Caller, body: bytes) -> None:
    check_problem(apiary.post_bytes("/v1/jobs", body), 400, "malformed_json")


BAD_IMAGES = {
    "zero bytes": (b"", 422, "image_empty"),
    "text": (b"this is not an image, you know", 422, "not_an_image"),
    "HTML served as JPEG": (HTML_PAGE, 422, "not_an_image"),
    "a PDF": (b"%PDF-1.7\n" + bytes(100), 422, "not_an_image"),
    "the beginning of a PNG": (a_picture((9, 9), "PNG")[:20], 422, "image_truncated"),
    "the beginning of a JPEG": (a_picture((9, 9), "JPEG")[:60], 422, "image_truncated"),
    "a decompression bomb": (a_decompression_bomb(), 422, "image_too_large"),
}


@pytest.mark.parametrize("as_part", [False, True], ids=["inline", "as a part"])
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_used_is_refused_at_once(apiary: Caller, name: str, as_part: bool) -> None:
    image, status, code = BAD_IMAGES[name]

    if as_part:
        response = apiary.post_parts([("job", '{"mode": "everything"}'), ("image", (image, "bee.jpg", "image/jpeg"))])
    else:
        response = apiary.send(job(image={"base64": as_base64(image)}))

    check_problem(response, status, code)


@pytest.mark.parametrize("as_part", [False, True], ids=["inline", "as a part"])
def test_an_image_over_the_limit_of_bytes_is_refused(make_settings: SettingsMaker, as_part: bool) -> None:
    caller = Caller(create_app(make_settings(max_image_bytes=100)), KEYS["apiary"])

    if as_part:
        response = caller.post_parts(
            [("job", '{"mode": "everything"}'), ("image", (a_picture(), "a.jpg", "image/jpeg"))]
        )
    else:
        response = caller.send(job())

    check_problem(response, 413, "image_file_too_large")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
def test_a_body_over_the_limit_is_refused_unread(make_settings: SettingsMaker, content_type: str) -> None:
    caller = Caller(create_app(make_settings(max_body_bytes=1000)), KEYS["apiary"])

    response = caller.post_bytes("/v1/jobs", b"x" * 1001, content_type)

    # An unsupported type is refused for its type, however large it is.
    if content_type == "text/plain":
        check_problem(response, 415, "unsupported_media_type")
    else:
        check_problem(response, 413, "body_too_large")


@pytest.mark.parametrize(
    ("mode", "prompt", "code"),
    [
        ("point", {"points": [[65.1, 10]]}, "point_outside_image"),
        ("point", {"points": [[10, 10], [-1.1, 10]]}, "point_outside_image"),
        ("point", {"points": [[10, 49.5]]}, "point_outside_image"),
        ("box", {"box": [10, 10, 65.5, 20]}, "box_outside_image"),
        ("box", {"box": [-2, 10, 20, 20]}, "box_outside_image"),
        ("box", {"box": [1, 1, 9, 9], "points": [[70, 1]]}, "point_outside_image"),
    ],
)
def test_a_prompt_outside_the_image_is_refused(apiary: Caller, mode: str, prompt: dict[str, Any], code: str) -> None:
    good = {"box": [1, 1, 9, 9]} if mode == "box" else POINT

    problem = check_problem(apiary.send(job(mode=mode, prompts=[good, prompt])), 422, code)

    (fault,) = problem.errors or ()
    assert (fault.pointer.rstrip("0123456789"), fault.code) == (
        "/prompts/1/box" if code == "box_outside_image" else "/prompts/1/points/",
        code,
    )
    assert problem.detail.startswith(f"{fault.pointer}: ")


def test_a_prompt_outside_the_picture_as_it_is_turned_is_refused(apiary: Caller) -> None:
    turned = {"base64": as_base64(a_picture((64, 48), orientation=6))}  # displayed as 48×64

    problem = check_problem(
        apiary.send(job(mode="point", image=turned, prompts=[{"points": [[60, 10]]}])), 422, "point_outside_image"
    )

    assert "48×64" in problem.detail


def test_an_unknown_model_is_refused_with_the_known_ones(apiary: Caller) -> None:
    problem = check_problem(apiary.send(job(model="facebook/sam-vit-gigantic")), 422, "unknown_model")

    assert "sam-demo, sam-other" in problem.detail


def test_a_bucket_that_is_not_allowed_is_refused(apiary: Caller) -> None:
    check_problem(apiary.send(job(image={"s3_uri": "s3://payroll/bee.jpg"})), 403, "bucket_not_allowed")


def test_an_upload_that_never_came_is_refused(apiary: Caller) -> None:
    check_problem(apiary.send(job(image={"upload_id": UNKNOWN_UPLOAD})), 404, "upload_not_found")


def test_a_spec_over_its_limit_is_refused(apiary: Caller) -> None:
    prompts = [{"points": [[10.123456, 10.123456]] * 256}] * 100

    check_problem(apiary.send(job(mode="point", prompts=prompts)), 413, "spec_too_large")
    check_problem(apiary.post_parts(_parts(json.dumps({"mode": "point", "prompts": prompts}))), 413, "spec_too_large")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/jpeg", "\x7f", ""])
def test_a_body_of_another_type_is_refused(apiary: Caller, content_type: str) -> None:
    check_problem(apiary.post_bytes("/v1/jobs", b"{}", content_type), 415, "unsupported_media_type")


def _parts(spec: str = '{"mode": "everything"}') -> list[tuple[str, Any]]:
    return [("job", spec), ("image", (a_picture(), "bee.jpg", "image/jpeg"))]


BAD_PARTS: dict[str, tuple[list[tuple[str, Any]], int, str]] = {
    "none": ([], 422, "malformed_multipart"),
    "no image": (_parts()[:1], 422, "malformed_multipart"),
    "no job": (_parts()[1:], 422, "malformed_multipart"),
    "two jobs": ([*_parts(), ("job", "{}")], 422, "malformed_multipart"),
    "two images": ([*_parts(), _parts()[1]], 422, "malformed_multipart"),
    "a part that is not known": ([*_parts(), ("colour", "red")], 422, "malformed_multipart"),
    "very many parts": ([*_parts(), *[("x", "y")] * 100], 413, "malformed_multipart"),
    "a huge job": (_parts("x" * (4 * MAX_SPEC_BYTES)), 413, "spec_too_large"),
    "a huge job as a file": ([("job", (b" " * (2 * MAX_SPEC_BYTES), "j", "x/y")), _parts()[1]], 413, "spec_too_large"),
    "a job that is not JSON": (_parts("mode=everything"), 400, "malformed_json"),
    "a job of deep JSON": (_parts("[" * 100_000), 400, "malformed_json"),
    "a job of bytes that are not text": ([("job", (b"\xff\x00", "j", "x/y")), _parts()[1]], 400, "malformed_json"),
    "a job that is a list": (_parts("[]"), 422, "invalid_spec"),
    "a job that is not a number": (_parts('{"mode": "everything", "run_timeout_s": NaN}'), 422, "invalid_spec"),
    "a job with an image of its own": (_parts('{"mode": "everything", "image": {}}'), 422, "invalid_spec"),
    "a job of an unknown mode": (_parts('{"mode": "polygon"}'), 422, "invalid_spec"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_a_multipart_request_at_fault_is_refused(apiary: Caller, name: str) -> None:
    parts, status, code = BAD_PARTS[name]

    check_problem(apiary.post_parts(parts), status, code)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n\xff\xff: \x00\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"--x--"),
    ],
)
def test_a_multipart_body_that_is_none_is_refused(apiary: Caller, content_type: str, body: bytes) -> None:
    check_problem(apiary.post_bytes("/v1/jobs", body, content_type), 422, "malformed_multipart")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=10), values, max_size=4),
    max_leaves=12,
)
job_like = st.fixed_dictionaries(
    {"mode": st.sampled_from(["everything", "point", "box"]) | json_values},
    optional={
        "image": json_values | st.fixed_dictionaries({"base64": st.text(max_size=20)}),
        "prompts": json_values | st.lists(st.fixed_dictionaries({"points": json_values, "box": json_values})),
        "params": json_values,
        "outputs": json_values,
        "webhook": json_values | st.fixed_dictionaries({"url": st.text(max_size=30), "events": json_values}),
        "metadata": json_values,
        "model": json_values,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | (json_values | job_like).map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_door(apiary: Caller, body: bytes) -> None:
    response = apiary.post_bytes("/v1/jobs", body)

    assert response.status_code in (400, 413, 422)
    assert response.content_type == "application/problem+json"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60))
def test_no_header_breaks_the_door(apiary: Caller, client: FlaskClient, value: str) -> None:
    job_id = "job_" + "0" * 32

    assert apiary.get(f"/v1/jobs/{job_id}", Prefer=value, X_Request_Id=value).status_code == 404
    assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {value}"}).status_code == 401
    assert client.get("/live", headers={"Host": value}).status_code in (200, 400)


def test_a_body_without_a_length_is_limited_as_well(make_settings: SettingsMaker, ledger: Ledger) -> None:
    client = create_app(make_settings(max_body_bytes=1000)).test_client()

    response = client.post(
        "/v1/jobs",
        input_stream=io.BytesIO(b" " * 5000),
        headers={"Authorization": f"Bearer {KEYS['apiary']}", "Content-Type": "application/json"},
        environ_overrides={"wsgi.input_terminated": True},
    )

    check_problem(response, 413, "body_too_large")
