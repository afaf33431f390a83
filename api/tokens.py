"""Tokens: short-lived credentials for web pages, made from an API key and signed, so that nothing has to be stored.

    mft_<the key's id>.<claims: JSON in base64url>.<signature in base64url>

The signature covers all before it.  Its secret is derived from the service's master secret and the SHA-256 of the API
key, so a token is valid only as long as exactly that key is: one that is revoked, or replaced in the settings under the
same number, takes its tokens with it.  A page may read its token, but not change it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.ledger.api_keys import Scope
from maskfleet.jobs.schema.wire import utc_time
from maskfleet.jobs.webhook_secrets import master_bytes

#: Secret scanners find tokens by it.
PREFIX = "mft_"
#: The name of the query parameter.  Source: RFC 6750, section 2.3.
IN_URL = "access_token"
#: What a token may allow at most: a page needs no more, and what a page holds may leak.
GRANTABLE = frozenset({Scope.READ, Scope.WRITE, Scope.INTERACTIVE})
#: Keeps the secrets apart from all else that is derived from a master secret.
_PURPOSE = b"maskfleet access token\0"
_FORM = re.compile(r"(mft_([0-9a-f]{12}|setting-[0-9]{1,6})\.([A-Za-z0-9_-]{1,800}))\.([A-Za-z0-9_-]{43})")


class _Claims(BaseModel):
    """What is signed.  One that this version does not know may be a limit, so a token that has it is not accepted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: str
    scopes: tuple[Scope, ...]
    expires_ms: int
    #: The only image that it is for; empty for all of the tenant.
    image: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token allows.  id: identifies it in logs, and is not secret.  image: the only one; empty for all."""

    id: str
    scopes: frozenset[Scope]
    expires_at: datetime
    image: str


class Tokens:
    """Makes tokens, and reads them.  Nothing is kept."""

    def __init__(self, masters: Sequence[str] = (), clock: Callable[[], float] = time.time) -> None:
        """masters: master secrets, of which the first signs and all verify.  clock: seconds since the epoch."""
        self._masters = [master_bytes(master) for master in masters]
        self._clock = clock

    def make(
        self, key_id: str, key_sha256: bytes, scopes: Iterable[Scope], ttl_s: int, image: str = ""
    ) -> tuple[str, Token]:
        """Return a token's text and what it allows.  Raises NotFound (``tokens_not_available``)."""
        if not self._masters:
            raise NotFound(
                "tokens_not_available",
                "This API was not given MASKFLEET_WEBHOOK_MASTER_SECRETS, which tokens are signed with. "
                "Ask its operator.",
            )
        claims = _Claims(
            id=secrets.token_hex(6),
            scopes=tuple(sorted(scopes)),
            expires_ms=int((self._clock() + ttl_s) * 1000),
            image=image,
        )
        body = f"{PREFIX}{key_id}.{_base64url(claims.model_dump_json(exclude_defaults=True).encode())}"
        return f"{body}.{_signature(self._masters[0], key_sha256, body)}", _token(claims)

    def read(self, text: str, key_sha256: bytes) -> Token | None:
        """Return what a token allows; None if that key did not make it.  Whether it has expired is another question."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        body, _, claims, signature = form.groups()
        # Compare with every master's, so that the time taken does not reveal which one matched.
        found = [hmac.compare_digest(_signature(master, key_sha256, body), signature) for master in self._masters]
        if not any(found):
            return None
        try:
            return _token(_Claims.model_validate_json(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))))
        except (ValueError, ValidationError):  # signed by another version
            return None

    def has_expired(self, token: Token) -> bool:
        """Return whether a token's time is over, by this machine's clock."""
        return self._clock() >= token.expires_at.timestamp()


def key_id_of(text: str) -> str:
    """Return the id of the API key that a token says it was made with; empty when it is not well formed."""
    form = _FORM.fullmatch(text)
    return form[2] if form else ""


def _token(claims: _Claims) -> Token:
    return Token(claims.id, frozenset(claims.scopes), utc_time(claims.expires_ms), claims.image)


def _signature(master: bytes, key_sha256: bytes, body: str) -> str:
    secret = hmac.digest(master, _PURPOSE + key_sha256, hashlib.sha256)
    return _base64url(hmac.digest(secret, body.encode(), hashlib.sha256))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
