"""The OpenAPI document: valid, complete, and generated from the validating models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.api.caller import Caller, check_problem, job
from tests.api.pictures import a_picture

Json = Any  # the document's own shape


@pytest.fixture
def document(client: FlaskClient) -> Json:
    return client.get("/openapi.json").json


def test_the_document_is_valid_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_and_the_app_have_the_same_routes(document: Json, app: Flask) -> None:
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}

    routed = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == routed
    assert ("post", "/v1/jobs") in described


def test_a_field_that_no_body_has_is_refused_by_every_route(document: Json) -> None:
    bodies = {
        path: operation["requestBody"]["content"]["application/json"]["schema"]
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }

    assert {"/v1/jobs", "/v1/images", "/v1/uploads", "/v1/webhooks/secret/rotate"} <= bodies.keys()
    for path, schema in bodies.items():
        for name, model in models(document, schema):
            assert model.get("additionalProperties") is False, (path, name)


def models(document: Json, schema: Json) -> Iterator[tuple[str, Json]]:
    """Yield each of the models that a body's schema names, with its name."""
    if "oneOf" in schema:
        for one in schema["oneOf"]:
            yield from models(document, one)
    elif "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from models(document, {**document["components"]["schemas"][name], "title": name})
    else:
        yield schema["title"], schema


def test_every_route_describes_its_errors_as_problem_documents(document: Json) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            bad = {status: response for status, response in operation["responses"].items() if int(status) >= 400}
            assert "500" in bad
            assert ("401" in bad) == (path.startswith("/v1/") or path == "/metrics") == bool(operation["security"])
            for response in bad.values():
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert content["examples"]


def _validator(document: Json, name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}"})


def test_its_schema_accepts_and_refuses_what_the_door_does(document: Json, apiary: Caller) -> None:
    schema = _validator(document, "JobSpec")
    bodies = [
        job(),
        job(mode="point", prompts=[{"points": [[1, 2]]}], outputs=["coco", "png"]),
        job(mode="box", prompts=[{"box": [1, 1, 9, 9]}]),
        job(mode="embed"),
        job(mode="embed", outputs=["coco"]),
        job(colour="red"),
        job(mode="polygon"),
        job(params={"points_per_batch": 0}),
        job(mode="point", prompts=[]),
        job(priority="urgent"),
    ]

    for body in bodies:
        assert schema.is_valid(body) == (apiary.send(body).status_code == 202), body


def test_its_own_example_is_a_good_job(document: Json) -> None:
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]

    _validator(document, "JobSpec").validate(content["application/json"]["example"])


def bodies(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the path, the media type and the description of each body; every one is a POST's."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                assert method == "post"
                yield path, kind, content


def test_every_body_that_can_be_tried_out_has_an_example_that_works(document: Json, apiary: Caller) -> None:
    tried = {}
    for path, kind, content in bodies(document):
        if kind == "application/json":
            assert content.get("example") is not None, path
            tried[path] = apiary.post(path, content["example"])

    no_endpoint = tried.pop("/v1/webhooks/ping")
    of_no_job = [tried.pop(f"/v1/jobs/{{job_id}}/{action}") for action in ("export", "refilter")]
    assert {answer.json["code"] for answer in of_no_job} == {"job_not_found"}
    assert {path: answer.text for path, answer in tried.items() if answer.status_code >= 300} == {}
    assert {"/v1/jobs", "/v1/images", "/v1/batches", "/v1/uploads"} <= tried.keys()
    check_problem(no_endpoint, 422, "invalid_ping")  # of a tenant without an endpoint


def test_a_multipart_body_that_can_be_tried_out_works_with_any_image(document: Json, apiary: Caller) -> None:
    tried = []
    for path, kind, content in bodies(document):
        if kind != "multipart/form-data":
            continue
        name = content["schema"]["properties"]["job"]["$ref"].rpartition("/")[2]
        example = document["components"]["schemas"][name]["example"]
        image = ("image", (a_picture(), "image.png", "image/png"))
        sent = apiary.post_parts([image, ("job", (json.dumps(example).encode(), "job.json", "application/json"))], path)
        assert sent.status_code == 202, sent.text
        tried.append(path)

    assert sorted(tried) == ["/v1/images", "/v1/jobs"]


def test_nothing_that_is_tried_out_is_sent_to_anybody_else_or_only_once(document: Json) -> None:
    for _, _, content in bodies(document):
        assert "webhook" not in json.dumps(content.get("example"))
        assert "example.com" not in json.dumps(content.get("example"))
    headers = [
        parameter
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    ]
    assert {"Idempotency-Key", "Prefer", "Last-Event-ID"} <= {header["name"] for header in headers}
    for header in headers:
        assert "example" not in header
        assert "For example `" in header["description"]


def test_a_batch_is_described_as_the_door_takes_it(document: Json, apiary: Caller) -> None:
    schema = _validator(document, "BatchSpec")
    images = [{"url": "https://example.com/bee.jpg"}]
    bodies = [
        {"mode": "everything", "images": images},
        {"mode": "box", "images": images, "prompts": [{"box": [1, 1, 9, 9]}], "webhook": {"url": "https://a.com/"}},
        {"mode": "everything", "images": []},
        {"mode": "everything"},
        {"mode": "everything", "images": images, "source": {"prefix": "s3://photos/tiles/"}},
        {"mode": "everything", "source": {}},
        {"mode": "everything", "images": images, "image": images[0]},
        {"mode": "point", "images": images},
        {"mode": "everything", "images": images, "webhook": {"url": "https://a.com/", "events": ["ended"]}},
    ]

    for body in bodies:
        assert schema.is_valid(body) == (apiary.post("/v1/batches", body).status_code == 202), body
    content = document["paths"]["/v1/batches"]["post"]["requestBody"]["content"]
    schema.validate(content["application/json"]["example"])
    sent = apiary.post("/v1/batches", bodies[0]).json
    _validator(document, "BatchView").validate(apiary.get(f"/v1/batches/{sent['id']}").json)


def test_a_multipart_job_is_described_without_its_image(document: Json) -> None:
    beside = _validator(document, "JobSpecBesideImage")

    assert beside.is_valid({"mode": "everything"})
    assert not beside.is_valid(job())
    parts = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert parts["required"] == ["image", "job"]


def test_an_image_to_make_known_is_described_as_the_door_takes_it(document: Json, apiary: Caller) -> None:
    image = job()["image"]
    schema = _validator(document, "EmbedRequest")

    for body in ({"image": image}, {"image": image, "model": "sam-demo"}, {}, {"image": image, "mode": "embed"}):
        assert schema.is_valid(body) == (apiary.post("/v1/images", body).status_code == 202), body
    content = document["paths"]["/v1/images"]["post"]["requestBody"]["content"]
    schema.validate(content["application/json"]["example"])
    assert content["multipart/form-data"]["schema"]["required"] == ["image"]
    assert _validator(document, "EmbedRequestBesideImage").is_valid({})
    _validator(document, "ImageView").validate(apiary.post("/v1/images", {"image": image}).json)


def test_answers_are_as_the_document_says(document: Json, apiary: Caller) -> None:
    job_id = apiary.a_job()

    _validator(document, "JobView").validate(apiary.get(f"/v1/jobs/{job_id}").json)
    _validator(document, "JobPage").validate(apiary.get("/v1/jobs?limit=1").json)
    _validator(document, "ModelList").validate(apiary.get("/v1/models").json)
    _validator(document, "Problem").validate(apiary.get("/v1/jobs/x").json)


def test_the_page_loads_nothing_from_elsewhere(client: FlaskClient) -> None:
    page = client.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert "<script>" not in page
    for source in sources:
        assert "//" not in source
        if not source.startswith("data:"):
            with client.get(f"/{source}") as response:
                assert response.status_code == 200
