"""The API's documentation: the OpenAPI document, and a page to read it and try the API.

The page is Swagger UI, whose files are in static/swagger-ui: nothing is loaded from elsewhere.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from flask import Blueprint, Flask, Response, current_app, request, send_from_directory

from maskfleet.api.openapi import document
from maskfleet.api.operation import Operation, operation
from maskfleet.api.services import current_services

blueprint = Blueprint("docs", __name__)

_SWAGGER_UI = Path(__file__).parent.parent / "static" / "swagger-ui"

#: The page runs its own scripts and talks to its own host.  Swagger UI embeds its images in its style sheet.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>maskfleet API</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
  <div id="page"></div>
  <script src="docs/swagger-ui-bundle.js"></script>
  <script src="docs/start.js"></script>
</body>
</html>
"""

_START = """window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null, persistAuthorization: false
});
"""


@blueprint.get("/openapi.json")
@operation(Operation(summary="This OpenAPI document.", scope=None, responses={200: "application/json", 304: None}))
def openapi() -> Response:
    response = Response(_document(current_app._get_current_object()), mimetype="application/json")  # type: ignore[attr-defined]  # the app behind Flask's proxy
    response.headers["Cache-Control"] = "no-cache"  # kept, and asked for again by its ETag
    response.add_etag()
    response.make_conditional(request)
    return response


@functools.lru_cache(maxsize=8)
def _document(app: Flask) -> bytes:
    """Return the document, which depends on the app and its settings; making it takes tens of milliseconds."""
    with app.app_context():
        return json.dumps(document(app, current_services().settings.public_url)).encode()


@blueprint.get("/docs")
@operation(Operation(summary="This document as a web page.", scope=None, responses={200: "text/html"}))
def page() -> Response:
    return Response(_PAGE, mimetype="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


@blueprint.get("/docs/")
@operation(Operation(summary="The same page: a redirect to it.", scope=None, responses={308: None}))
def page_with_slash() -> Response:
    # Relative: a proxy may serve this service under a path of its own.
    return Response(status=308, headers={"Location": "../docs"})


@blueprint.get("/docs/<path:name>")
@operation(
    Operation(
        summary="The page's scripts and styles.",
        scope=None,
        responses={200: "*/*"},
        problems={404: ("route_not_found",)},
    )
)
def asset(name: str) -> Response:
    if name == "start.js":
        return Response(_START, mimetype="text/javascript")
    return send_from_directory(_SWAGGER_UI, name, max_age=3600)
