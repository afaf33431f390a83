"""JSON responses."""

from __future__ import annotations

from flask import Response
from pydantic import BaseModel


def json_response(view: BaseModel, *, status: int = 200) -> Response:
    """Return a response whose body is the view."""
    return Response(view.model_dump_json(), status=status, mimetype="application/json")
