"""The OpenAPI 3.1 document, generated from the routes and the models that validate and serialise their bodies."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from flask import Flask
from pydantic import BaseModel, TypeAdapter

from maskfleet.api.operation import Operation, TakenTokens, operation_of
from maskfleet.api.problems import PROBLEM_TYPE
from maskfleet.api.tokens import IN_URL
from maskfleet.jobs.errors import UNREADABLE
from maskfleet.jobs.schema.api import Problem
from maskfleet.jobs.schema.batch_spec import BatchSpec
from maskfleet.jobs.schema.spec import EmbedRequest, JobSpec
from maskfleet.jobs.schema.wire import BATCH_ID, IMAGE_ID, JOB_ID

Json = dict[str, Any]  # Any: a part of the document, whose shape the OpenAPI specification defines

_REF = "#/components/schemas/"
_KEY_PROBLEMS = {
    400: ("token_in_url",),
    401: ("no_api_key", "unknown_api_key", "invalid_token", "token_expired"),
    403: ("missing_scope", "token_not_allowed"),
    429: ("rate_limited",),
    503: ("queue_unavailable",),
}
_COMMON_PROBLEMS = {500: ("internal_error", UNREADABLE)}
_BODY_PROBLEMS = {408: ("body_too_slow",)}
_HOST_PROBLEMS = {400: ("invalid_host", "host_not_allowed")}
_WITH_RETRY_AFTER = (429, 503)

_MODES = ("everything", "point", "box")
#: Of a job: those that make masks, and the one that makes later jobs faster.
_JOB_MODES = (*_MODES, "embed")

_LIMIT_HEADERS = {
    "RateLimit-Limit": "Requests that your key may send per time window; absent when there is no limit.",
    "RateLimit-Remaining": "Requests left in the current window.",
    "RateLimit-Reset": "Seconds until some of the quota is restored.",
}
DELIVERY_ID = "^msg_(ping_[0-9a-f]{32}|(job|batch)_[0-9a-f]{32}_[0-9]+_[a-z]+)$"
#: The schemas of ids in paths.
_IDS: dict[str, Json] = {
    "job_id": {"type": "string", "pattern": f"^{JOB_ID}$"},
    "image_id": {"type": "string", "pattern": f"^{IMAGE_ID}$"},
    "batch_id": {"type": "string", "pattern": f"^{BATCH_ID}$"},
    "delivery_id": {"type": "string", "pattern": DELIVERY_ID},
}

#: A dark disc on white, 64×48: with it the examples work as they are, wherever they are tried out.
_EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAAAwAQAAAACJMEGyAAAAbUlEQVR42rXQMQ6CABSD4Y8XBjY5AjfRo3k0R4/BEYwTJoQ6gAMDk9rpT5rm"
    "vbaJVeUP8Oo3uD83uAWShXNSLIwUM499fGKieDAfnBhZvvhwoA6snpaio9tbLf0nOCDJVZLCpVkLZjolaX497xvtECPOOZbLIAAAAABJRU5E"
    "rkJggg=="
)
#: What "Try it out" on the page of the documentation begins with.  No webhook is sent to anybody else, and no
#: Idempotency-Key is set: a second try with the same one would return the first job.
_EXAMPLE_JOB_BESIDE_IMAGE: Json = {"mode": "everything", "outputs": ["coco", "overlay"], "metadata": {"order": "42"}}
_EXAMPLE_JOB: Json = {
    "mode": "box",
    "image": {"base64": _EXAMPLE_PNG},
    "prompts": [{"box": [18, 10, 47, 39]}],
    "outputs": ["coco", "overlay"],
    "metadata": {"order": "42"},
}
_EXAMPLE_IMAGE_BESIDE_IMAGE: Json = {"metadata": {"order": "42"}}
_EXAMPLE_IMAGE: Json = {"image": {"base64": _EXAMPLE_PNG}, **_EXAMPLE_IMAGE_BESIDE_IMAGE}
_EXAMPLE_BATCH: Json = {
    "mode": "everything",
    "images": [{"base64": _EXAMPLE_PNG}, {"base64": _EXAMPLE_PNG}],
    "params": {"points_per_crop": 16},
    "outputs": ["coco"],
    "priority": "bulk",
    "metadata": {"album": "7"},
}
#: Of the other bodies, by their model.
_EXAMPLES: dict[str, Json] = {
    "ExportRequest": {"outputs": ["geojson", "svg"]},
    "RefilterRequest": {"params": {"pred_iou_thresh": 0.9, "min_mask_area": 100}, "inline": "rle"},
    "UploadRequest": {"content_type": "image/png", "size": 166},
    "TokenRequest": {"ttl_s": 600},
    "PingRequest": {},
    "SecretRotation": {"overlap_s": 86400},
    "RedeliveryRange": {"from": "2026-01-02T03:00:00Z", "only_failed": True},
}


def document(app: Flask, public_url: str = "") -> Json:
    """Describe every route of the app.  Raises LookupError for a route without a description.

    public_url: where clients reach the API; empty for where they found this document.
    """
    routes = list(_routes(app))
    paths: dict[str, Json] = {}
    for path, method, name, described in routes:
        paths.setdefault(path, {})[method] = _operation(path, name, described)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "maskfleet",
            "version": version("maskfleet"),
            "description": "Images in, masks out: Segment Anything as a durable job service.\n\n"
            "Requests with a field that is not described here are refused. Responses and webhooks may gain fields, "
            "states and event types: ignore those that you do not know.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": public_url.rstrip("/") or "/"}],
        # First the routes for callers, then those for operators.
        "paths": dict(sorted(paths.items(), key=lambda item: (not item[0].startswith("/v1/"), item[0]))),
        "components": {
            "headers": {
                name: {"description": text, "schema": {"type": "integer"}} for name, text in _LIMIT_HEADERS.items()
            },
            "schemas": _schemas([described for *_, described in routes]),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Your API key. Each operation names the scope it needs.",
                },
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token for a web page, made with `POST /v1/tokens`.",
                },
                "token_in_url": {
                    "type": "apiKey",
                    "in": "query",
                    "name": IN_URL,
                    "description": "The same in the URL of an event stream, since an EventSource sends no headers. "
                    "Proxies log URLs: keep such tokens short-lived.",
                },
            },
        },
    }


def _routes(app: Flask) -> Iterator[tuple[str, str, str, Operation]]:
    """Yield path, method, name and description of each route; HEAD and OPTIONS follow from the others."""
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            view = app.view_functions[rule.endpoint]
            yield path, method.lower(), view.__name__, operation_of(view)


def _operation(path: str, name: str, described: Operation) -> Json:
    has_body = any((described.takes_job, described.takes_image, described.takes_batch, described.body))
    problems = [
        _COMMON_PROBLEMS,
        described.problems,
        *([_BODY_PROBLEMS] if has_body else []),
        *([_KEY_PROBLEMS] if described.scope is not None else []),
        *([_HOST_PROBLEMS] if not described.any_host else []),
    ]
    codes: dict[int, tuple[str, ...]] = {}
    for some in problems:
        for status, names in some.items():
            codes[status] = (*codes.get(status, ()), *names)
    limited = described.scope is not None
    piece: Json = {
        "operationId": name,
        "summary": described.summary,
        **({"description": described.description} if described.description else {}),
        "tags": [path.split("/")[2] if path.startswith("/v1/") else "service"],
        "security": _security(described),
        "responses": {
            **{str(status): _response(status, body, limited) for status, body in described.responses.items()},
            **{str(status): _problem(status, names) for status, names in sorted(codes.items())},
        },
    }
    parameters = _parameters(path, described)
    if parameters:
        piece["parameters"] = parameters
    if described.takes_job:
        piece["requestBody"] = _body_with_image("JobSpec", _EXAMPLE_JOB, ["image", "job"])
    elif described.takes_image:
        piece["requestBody"] = _body_with_image("EmbedRequest", _EXAMPLE_IMAGE, ["image"])
    elif described.takes_batch:
        batch = {"schema": {"$ref": f"{_REF}BatchSpec"}, "example": _EXAMPLE_BATCH}
        piece["requestBody"] = {"required": True, "content": {"application/json": batch}}
    elif described.body is not None:
        content: Json = {"schema": _ref(described.body)}
        if (example := _EXAMPLES.get(described.body.__name__)) is not None:
            content["example"] = example
        piece["requestBody"] = {"required": True, "content": {"application/json": content}}
    return piece


def _security(described: Operation) -> list[Json]:
    """Return what a caller may identify itself with: one of several."""
    if described.scope is None:
        return []
    taken = {
        "key": True,
        "token": described.tokens is not TakenTokens.NONE,
        "token_in_url": described.token_in_url,
    }
    return [{name: [described.scope]} for name, is_taken in taken.items() if is_taken]


def _parameters(path: str, described: Operation) -> list[Json]:
    text: Json = {"type": "string"}
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": _IDS.get(name, text)}
        for name in re.findall(r"{([a-z_]+)}", path)
    ]
    parameters += [
        {
            "name": header.name,
            "in": "header",
            # Not as its example, with which "Try it out" would send it.
            "description": f"{header.description} For example `{header.example}`.",
            "schema": {**text, "pattern": header.pattern} if header.pattern else text,
        }
        for header in described.headers
    ]
    if described.query is not None:
        fields = described.query.model_json_schema(ref_template=_REF + "{model}")["properties"]
        parameters += [
            {"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema}
            for name, schema in fields.items()
        ]
    return parameters


def _response(status: int, body: type[BaseModel] | str | None, limited: bool) -> Json:
    piece: Json = {"description": HTTPStatus(status).phrase}
    if isinstance(body, str):
        # OpenAPI 3.1 has no way to describe a stream of events.
        is_text = body.startswith("text/") and body != "text/event-stream"
        piece["content"] = {body: {"schema": {"type": "string"} if is_text else {}}}
    elif body is not None:
        piece["content"] = {"application/json": {"schema": _ref(body)}}
    headers: Json = {name: {"$ref": f"#/components/headers/{name}"} for name in _LIMIT_HEADERS if limited}
    if status in (HTTPStatus.ACCEPTED, HTTPStatus.TEMPORARY_REDIRECT):
        headers["Location"] = {"schema": {"type": "string"}}
    if headers:
        piece["headers"] = headers
    return piece


def _problem(status: int, codes: tuple[str, ...]) -> Json:
    def example(code: str) -> Json:
        return {
            "value": {
                "type": f"urn:maskfleet:problem:{code}",
                "title": HTTPStatus(status).phrase,
                "status": status,
                "detail": "…",
                "code": code,
                "instance": "urn:maskfleet:request:4f0c…",
            }
        }

    piece: Json = {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(f'`{code}`' for code in codes)}",
        "content": {PROBLEM_TYPE: {"schema": _ref(Problem), "examples": {code: example(code) for code in codes}}},
    }
    if status in _WITH_RETRY_AFTER:
        piece["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return piece


def _body_with_image(model: str, example: Json, required: list[str]) -> Json:
    """Describe a body of a model, which may also come as two parts, the image apart from the rest."""
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": f"{_REF}{model}"}, "example": example},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": required,
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "The image file."},
                        "job": {"$ref": f"{_REF}{model}BesideImage"},
                    },
                },
                "encoding": {"image": {"contentType": "image/*"}, "job": {"contentType": "application/json"}},
            },
        },
    }


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": f"{_REF}{model.__name__}"}


def _schemas(described: list[Operation]) -> dict[str, Json]:
    # Any: the adapter of a union of models
    unions: dict[str, TypeAdapter[Any]] = {"JobSpec": TypeAdapter(JobSpec), "BatchSpec": TypeAdapter(BatchSpec)}
    wanted: dict[type[BaseModel], Literal["validation", "serialization"]] = {Problem: "serialization"}
    for operation in described:
        wanted |= {body: "serialization" for body in operation.responses.values() if isinstance(body, type)}
        wanted |= {body: "validation" for body in (operation.body, operation.query) if body is not None}
    wanted[EmbedRequest] = "validation"
    _, found = TypeAdapter.json_schemas(
        [
            *((name, "validation", union) for name, union in unions.items()),
            *((model.__name__, mode, TypeAdapter(model)) for model, mode in wanted.items()),
        ],
        ref_template=_REF + "{model}",
    )
    schemas: dict[str, Json] = found["$defs"]
    for name in [*(f"{mode.capitalize()}Job" for mode in _JOB_MODES), "EmbedRequest"]:
        schemas[f"{name}BesideImage"] = _beside_image(schemas[name])
    variants = {
        "JobSpec": _union("Job", _JOB_MODES),
        "JobSpecBesideImage": _union("JobBesideImage", _JOB_MODES),
        "BatchSpec": _union("Batch", _MODES),
    }
    # Without these, "Try it out" would fill in every field of the first mode.
    variants["JobSpecBesideImage"]["example"] = _EXAMPLE_JOB_BESIDE_IMAGE
    schemas["EmbedRequestBesideImage"]["example"] = _EXAMPLE_IMAGE_BESIDE_IMAGE
    return dict(sorted({**schemas, **variants}.items()))


def _union(kind: str, modes: tuple[str, ...]) -> Json:
    """Return the union over the modes, each with its own model of this kind."""
    mapping = {mode: f"{_REF}{mode.capitalize()}{kind}" for mode in modes}
    return {
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": "mode", "mapping": mapping},
    }


def _beside_image(schema: Json) -> Json:
    """Return the schema of a part beside the image's own, which leaves the image out."""
    schema = copy.deepcopy(schema)
    del schema["properties"]["image"]
    schema["required"] = [name for name in schema.get("required", []) if name != "image"]
    return schema
