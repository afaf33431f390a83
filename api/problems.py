"""Errors as problem documents (RFC 9457), and the one place that catches unexpected exceptions."""

from __future__ import annotations

from http import HTTPStatus

from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException

from maskfleet.jobs.errors import FieldFault, JobError, UnsupportedCoding
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.api import Problem

#: Source: RFC 9457, section 3.
PROBLEM_TYPE = "application/problem+json"
#: The most fields in one response, and the most text of each: the invalid input may itself be megabytes.
MAX_FAULTS, MAX_TEXT = 50, 500

#: Errors that the framework raises: the code and what to do.
_HTTP_PROBLEMS = {
    400: ("bad_request", "The request is malformed, or its body does not match its headers."),
    404: ("route_not_found", "No route matches this URL; /openapi.json lists them all."),
    405: ("method_not_allowed", "This URL does not support that method; see the Allow header."),
    413: ("body_too_large", "The request body is too large. Upload the image with POST /v1/uploads."),
    429: ("rate_limited", "Rate limit exceeded; retry after the time in Retry-After."),
    415: ("unsupported_media_type", "Send application/json, or multipart/form-data with the parts job and image."),
}

logger = get_logger()


def register_problems(app: Flask) -> None:
    """Return every error of the app as a problem document."""
    app.register_error_handler(JobError, error_response)
    app.register_error_handler(HTTPException, _http_error_response)
    app.register_error_handler(Exception, _unforeseen_error_response)


def error_response(error: JobError) -> Response:
    """Return the response for an error."""
    faults = error.faults[:MAX_FAULTS]
    fields = tuple(FieldFault(_cut(fault.pointer), fault.code, _cut(fault.detail)) for fault in faults)
    response = _problem_response(error.http_status, error.code, error.title, error.detail, fields)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="maskfleet"'
    if error.code in ("invalid_token", "token_expired"):
        response.headers["WWW-Authenticate"] = 'Bearer realm="maskfleet", error="invalid_token"'
    if error.code in ("missing_scope", "token_not_allowed", "image_not_allowed"):
        response.headers["WWW-Authenticate"] = 'Bearer realm="maskfleet", error="insufficient_scope"'
    if isinstance(error, UnsupportedCoding):
        response.headers["Accept-Encoding"] = "identity"  # RFC 9110, section 12.5.3
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("request_not_served", code=error.code, detail=error.detail, **error.log_fields)
    return response


def _http_error_response(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if status < HTTPStatus.BAD_REQUEST:  # a redirect, which Werkzeug also raises
        return Response(status=status, headers=[header for header in error.get_headers() if header[0] == "Location"])
    title = HTTPStatus(status).phrase
    code, detail = _HTTP_PROBLEMS.get(status, (title.lower().replace(" ", "_"), title))
    response = _problem_response(status, code, title, detail)
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _unforeseen_error_response(error: Exception) -> Response:
    logger.error("request_broke", exc_info=error)
    return _problem_response(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "Something went wrong",
        "The service failed unexpectedly. Send the request again; if that fails too, give the operator the instance.",
    )


def _problem_response(status: int, code: str, title: str, detail: str, errors: tuple[FieldFault, ...] = ()) -> Response:
    problem = Problem(
        type=f"urn:maskfleet:problem:{code}",
        title=title,
        status=int(status),
        detail=_cut(detail),
        code=code,
        instance=f"urn:maskfleet:request:{g.request_id}",
        errors=errors or None,
    )
    return Response(problem.model_dump_json(exclude_none=True), status=int(status), mimetype=PROBLEM_TYPE)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
