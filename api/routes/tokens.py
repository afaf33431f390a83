"""Tokens: what a web page gets instead of an API key."""

from __future__ import annotations

from flask import Blueprint, Response

from maskfleet.api.known_images import find_named
from maskfleet.api.operation import Operation, TakenTokens, operation
from maskfleet.api.request_body import read_json
from maskfleet.api.responses import json_response
from maskfleet.api.services import current_caller, current_services, tenant
from maskfleet.api.tokens import GRANTABLE
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.schema.api import TokenRequest, TokenView
from maskfleet.jobs.schema.spec import ImageSource

#: Without a wish: what a page needs, without the right to go before other jobs.
_USUAL = (Scope.READ, Scope.WRITE)

blueprint = Blueprint("tokens", __name__)
logger = get_logger()


@blueprint.post("/tokens")
@operation(
    Operation(
        summary="Make a short-lived token for a web page, for all of your jobs or for one image.",
        scope=Scope.READ,
        description=(
            "A page must not hold an API key: everyone who opens it could read it. It gets a token from your server, "
            "and sends it as `Authorization: Bearer`; an EventSource, which sends no headers, as `?access_token=` to a "
            "job's event stream. A token for one image can send jobs of modes `point`, `box` and `embed` of that image "
            "only, and follow, read and cancel all jobs of that image, whoever sent them. A token ends when it "
            "expires, and with the key that made it; it counts towards that key's rate limit, and makes no tokens."
        ),
        body=TokenRequest,
        responses={201: TokenView},
        problems={
            400: ("malformed_json",),
            404: ("tokens_not_available",),
            413: ("body_too_large",),
            415: ("unsupported_media_type", "content_encoding_not_supported"),
            422: ("invalid_token_request", "image_not_known"),
        },
        tokens=TakenTokens.NONE,
    )
)
def make_token() -> Response:
    wanted, caller = read_json(TokenRequest, "invalid_token_request"), current_caller()
    if wanted.scopes is None:
        scopes = [scope for scope in _USUAL if caller.has(scope)]
    else:
        scopes = [scope for scope in GRANTABLE if scope in wanted.scopes]
        for scope in scopes:
            caller.require(scope)
    image = _name_of(wanted.image) if wanted.image else ""
    text, token = current_services().keys.make_token(caller, scopes, wanted.ttl_s, image)
    logger.info("token_made", token_id=token.id, image=token.image, ttl_s=wanted.ttl_s, scopes=sorted(token.scopes))
    view = TokenView(token=text, expires_at=token.expires_at, scopes=tuple(sorted(token.scopes)))
    return json_response(view, status=201)


def _name_of(image: ImageSource) -> str:
    """Return the name under which jobs record the image.  Raises InvalidRequest (``image_not_known``)."""
    try:
        return find_named(image, tenant(), current_services()).source.name
    except InvalidRequest as error:
        raise error.locate("/image_id") from error
