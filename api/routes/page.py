"""The playground at ``/``: a page to try the service with.  It uses the public API alone, as any other page could.

Its files are in static/playground, as they are: there is no build step, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import functools
from pathlib import Path

from flask import Blueprint, Response, jsonify, request, send_from_directory

from maskfleet.api.operation import Operation, operation
from maskfleet.api.services import current_services

blueprint = Blueprint("page", __name__)

_FILES = Path(__file__).parent.parent / "static" / "playground"


def page_policy(store: str) -> str:
    """Return the page's content security policy.  store: the origin of the object store, for images and results.

    The page may show the pictures that it has in memory (blob:), and nothing on it makes HTML of text.
    """
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self' {store}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


@blueprint.get("/")
@operation(
    Operation(
        summary="The playground, a web page to try the service with; programs get links, as JSON.",
        scope=None,
        responses={200: "*/*"},
    )
)
def playground() -> Response:
    if _wants_page():
        response = Response(_page(), mimetype="text/html")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = page_policy(current_services().store.public_origin())
    else:
        response = jsonify(service="maskfleet", api="/v1", docs="/docs", openapi="/openapi.json")
    response.vary.add("Accept")
    return response


@blueprint.get("/playground/<path:name>")
@operation(
    Operation(
        summary="The playground's scripts, styles and example pictures.",
        scope=None,
        responses={200: "*/*", 304: None},
        problems={404: ("route_not_found",)},
    )
)
def playground_file(name: str) -> Response:
    # Kept by browsers, and asked for again by ETag, so that a new version's files are never mixed with an old one's.
    return send_from_directory(_FILES, name, max_age=0)


@functools.cache
def _page() -> bytes:
    return (_FILES / "index.html").read_bytes()


def _wants_page() -> bool:
    """Return whether the client is a browser, which names HTML; programs mostly take anything."""
    return request.accept_mimetypes.quality("text/html") > request.accept_mimetypes.quality("application/json")
