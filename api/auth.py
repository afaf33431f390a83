"""API keys: who is asking.  Only the keys' SHA-256 is kept in memory."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

from pydantic import SecretStr

from jobs.errors import Unauthorized

_HASHED = "sha256:"


class ApiKeys:
    """The keys that are known, and the tenant of each."""

    def __init__(self, pairs: Iterable[SecretStr]) -> None:
        """Read ``tenant:key`` and ``tenant:sha256:<hex>`` pairs; raises ValueError for anything else."""
        self._tenants = [_read_pair(pair.get_secret_value(), number) for number, pair in enumerate(pairs, start=1)]

    def tenant_of(self, authorization: str | None) -> str:
        """Give the tenant that an ``Authorization`` header belongs to.

        Raises Unauthorized: ``no_api_key``, ``unknown_api_key``.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("no_api_key", "Send your API key in a header: Authorization: Bearer <key>.")
        given = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, so that the time taken tells nothing of which one matched.
        matches = [tenant for tenant, known in self._tenants if hmac.compare_digest(known, given)]
        if not matches:
            raise Unauthorized("unknown_api_key", "This API key is not known here. Ask the operator for one.")
        return matches[0]


def _read_pair(pair: str, number: int) -> tuple[str, bytes]:
    # The message names the pair by its place: it may hold a secret.
    tenant, _, key = pair.partition(":")
    # A tenant's name is a part of keys in Redis and of paths in the store.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", tenant):
        raise ValueError(f"API key {number}: write tenant:key, the tenant in letters, digits, '_', '.' and '-'.")
    if not key.startswith(_HASHED):
        if not key:
            raise ValueError(f"API key {number}: the key after the tenant is empty.")
        return tenant, hashlib.sha256(key.encode()).digest()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key.removeprefix(_HASHED)):
        raise ValueError(f"API key {number}: after sha256: come 64 hex digits.")
    return tenant, bytes.fromhex(key.removeprefix(_HASHED))
