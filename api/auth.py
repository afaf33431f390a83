"""Authentication: from the ``Authorization`` header to a tenant and the scopes of its key.

Keys come from two places.  Keys in the settings are for getting started: they stay valid as long as they are set, and
allow everything.  Keys made by `maskfleet keys create` are in Redis, can be revoked at any time, and have scopes.
Tokens are made from either, for web pages (tokens.py).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from maskfleet.api.tokens import PREFIX, Token, Tokens, key_id_of
from maskfleet.jobs.errors import Forbidden, Unauthorized
from maskfleet.jobs.ledger.api_keys import TENANT, Key, KeyStore, Scope

_HASHED = "sha256:"
#: How long a key found in Redis is cached.  It works for this long after it was revoked, and while Redis is down; a
#: stream, which looks every two seconds, ends within five seconds.
REMEMBERED_S = 3.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.  key_id identifies the key and is not secret.  token: if they sent one instead of the key."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    token: Token | None = None

    def require(self, scope: Scope) -> None:
        """Raise Forbidden (``missing_scope``) unless the key allows it."""
        if not self.has(scope):
            raise Forbidden("missing_scope", f"This needs an API key with the scope {scope}.")

    def has(self, scope: Scope) -> bool:
        """Return whether the key, or the token, allows it."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def image(self) -> str:
        """The only image that the token is for; empty for no such limit."""
        return self.token.image if self.token is not None else ""


@dataclass(frozen=True, slots=True)
class _Known:
    """A known key.  sha256: of its text, which is not kept."""

    caller: Caller
    sha256: bytes


class ApiKeys:
    """The known keys, and the tokens made with them.  Only the keys' SHA-256 is kept in memory."""

    def __init__(self, pairs: Iterable[SecretStr], store: KeyStore, tokens: Tokens | None = None) -> None:
        """Read ``tenant:key`` and ``tenant:sha256:<hex>`` pairs; raises ValueError for anything else."""
        self._set = [_read_pair(pair.get_secret_value(), number) for number, pair in enumerate(pairs, start=1)]
        self._store = store
        self._tokens = tokens or Tokens()
        self._remembered: dict[bytes | str, tuple[_Known, float]] = {}

    def caller_of(self, authorization: str | None) -> Caller:
        """Return the caller that an ``Authorization`` header identifies.

        Raises Unauthorized (``no_api_key``, ``unknown_api_key``, ``invalid_token``, ``token_expired``),
        QueueUnavailable.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("no_api_key", "Send your API key in a header: Authorization: Bearer <key>.")
        if key.startswith(PREFIX):
            return self._caller_of_token(key)
        digest = hashlib.sha256(key.encode()).digest()
        # Compare every key, so that the time taken does not reveal which one matched.
        matches = [known for known in self._set if hmac.compare_digest(known.sha256, digest)]
        known = matches[0] if matches else self._remember(digest, lambda: self._store.find(key))
        if known is None:
            raise Unauthorized(
                "unknown_api_key", "Unknown API key: it may be mistyped, revoked or expired. Ask the operator."
            )
        return known.caller

    def make_token(self, caller: Caller, scopes: Iterable[Scope], ttl_s: int, image: str = "") -> tuple[str, Token]:
        """Return the text of a token made with a caller's key, and what it allows.

        Raises NotFound (``tokens_not_available``), Unauthorized if the key is not known any more, QueueUnavailable.
        """
        known = self._by_id(caller.key_id)
        if known is None:
            raise Unauthorized("unknown_api_key", "This API key was revoked, or has expired. Ask the operator.")
        return self._tokens.make(caller.key_id, known.sha256, scopes, ttl_s, image)

    def _caller_of_token(self, text: str) -> Caller:
        known = self._by_id(key_id_of(text))
        token = self._tokens.read(text, known.sha256) if known is not None else None
        if known is None or token is None:
            raise Unauthorized(
                "invalid_token",
                "Invalid token: it may be incomplete, or the API key that it was made with was revoked. "
                "Get a new one from your server.",
            )
        if self._tokens.has_expired(token):
            raise Unauthorized("token_expired", "The token has expired. Get a new one from your server.")
        key = known.caller
        return Caller(key.tenant, key.key_id, frozenset(filter(key.has, token.scopes)), token)

    def _by_id(self, key_id: str) -> _Known | None:
        for known in self._set:
            if known.caller.key_id == key_id:
                return known
        return self._remember(key_id, lambda: self._store.read(key_id)) if key_id else None

    def _remember(self, name: bytes | str, find: Callable[[], Key | None]) -> _Known | None:
        """Return a key from Redis, or from memory if it was found lately.  name: its digest, or its id."""
        # Unknown keys are not cached, so this never outgrows the list of keys.
        known, until = self._remembered.get(name, (None, 0.0))
        if known is not None and time.monotonic() < until:
            return known
        found = find()
        if found is None:
            self._remembered.pop(name, None)
            return None
        known = _Known(Caller(found.tenant, found.id, found.scopes), found.sha256)
        self._remembered[name] = known, time.monotonic() + REMEMBERED_S
        return known


def _read_pair(pair: str, number: int) -> _Known:
    # The message names the pair by its number, since its text may hold a secret.
    tenant, _, key = pair.partition(":")
    if not TENANT.fullmatch(tenant):
        raise ValueError(f"API key {number}: write tenant:key; the tenant may have letters, digits, '_', '.' and '-'.")
    caller = Caller(tenant, f"setting-{number}", frozenset(Scope))
    if not key.startswith(_HASHED):
        if not key:
            raise ValueError(f"API key {number}: the key after the tenant is empty.")
        if key.startswith(PREFIX):
            raise ValueError(f"API key {number}: a key must not begin with {PREFIX}, as tokens do.")
        return _Known(caller, hashlib.sha256(key.encode()).digest())
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key.removeprefix(_HASHED)):
        raise ValueError(f"API key {number}: write 64 hex digits after sha256:.")
    return _Known(caller, bytes.fromhex(key.removeprefix(_HASHED)))
