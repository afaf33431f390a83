"""Authentication: from the ``Authorization`` header to a tenant and the scopes of its key.

Keys come from two places.  Keys in the settings are for getting started: they stay valid as long as they are set, and
allow everything.  Keys made by `maskfleet keys create` are in Redis, can be revoked at any time, and have scopes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from maskfleet.jobs.errors import Forbidden, Unauthorized
from maskfleet.jobs.ledger.api_keys import TENANT, KeyStore, Scope

_HASHED = "sha256:"
#: How long a key found in Redis is cached.  It works for this long after it was revoked, and while Redis is down; a
#: stream, which looks every two seconds, ends within five seconds.
REMEMBERED_S = 3.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.  key_id identifies the key and is not secret."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raise Forbidden (``missing_scope``) unless the key allows it."""
        if scope not in self.scopes and Scope.ADMIN not in self.scopes:
            raise Forbidden("missing_scope", f"This needs an API key with the scope {scope}.")


class ApiKeys:
    """The known keys.  Only their SHA-256 is kept in memory."""

    def __init__(self, pairs: Iterable[SecretStr], store: KeyStore) -> None:
        """Read ``tenant:key`` and ``tenant:sha256:<hex>`` pairs; raises ValueError for anything else."""
        self._set = [_read_pair(pair.get_secret_value(), number) for number, pair in enumerate(pairs, start=1)]
        self._store = store
        self._remembered: dict[bytes, tuple[Caller, float]] = {}

    def caller_of(self, authorization: str | None) -> Caller:
        """Return the caller that an ``Authorization`` header identifies.

        Raises Unauthorized (``no_api_key``, ``unknown_api_key``), QueueUnavailable.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("no_api_key", "Send your API key in a header: Authorization: Bearer <key>.")
        digest = hashlib.sha256(key.encode()).digest()
        # Compare every key, so that the time taken does not reveal which one matched.
        matches = [caller for caller, known in self._set if hmac.compare_digest(known, digest)]
        caller = matches[0] if matches else self._find(key, digest)
        if caller is None:
            raise Unauthorized(
                "unknown_api_key", "Unknown API key: it may be mistyped, revoked or expired. Ask the operator."
            )
        return caller

    def _find(self, key: str, digest: bytes) -> Caller | None:
        # Unknown keys are not cached, so this never outgrows the list of keys.
        caller, until = self._remembered.get(digest, (None, 0.0))
        if caller is not None and time.monotonic() < until:
            return caller
        found = self._store.find(key)
        if found is None:
            self._remembered.pop(digest, None)
            return None
        caller = Caller(found.tenant, found.id, found.scopes)
        self._remembered[digest] = caller, time.monotonic() + REMEMBERED_S
        return caller


def _read_pair(pair: str, number: int) -> tuple[Caller, bytes]:
    # The message names the pair by its number, since its text may hold a secret.
    tenant, _, key = pair.partition(":")
    if not TENANT.fullmatch(tenant):
        raise ValueError(f"API key {number}: write tenant:key; the tenant may have letters, digits, '_', '.' and '-'.")
    caller = Caller(tenant, f"setting-{number}", frozenset(Scope))
    if not key.startswith(_HASHED):
        if not key:
            raise ValueError(f"API key {number}: the key after the tenant is empty.")
        return caller, hashlib.sha256(key.encode()).digest()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key.removeprefix(_HASHED)):
        raise ValueError(f"API key {number}: write 64 hex digits after sha256:.")
    return caller, bytes.fromhex(key.removeprefix(_HASHED))
