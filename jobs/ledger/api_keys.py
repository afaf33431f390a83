"""API keys that are created and revoked while the service runs: their format, and how they are stored.

    mf_<id: 12 hex digits>_<secret: 48 hex digits><CRC-32 of all before it: 8 hex digits>

The id is not secret: it identifies the key in lists and logs.  The secret is 192 random bits.  Prefix and checksum
let scanners recognise leaked keys, and let the API reject mistyped ones without querying Redis.

Redis holds, all under ``mf:``:

    key:{id}    hash    tenant, scopes, SHA-256 of the key, times; gone when the key expires or is revoked
    keys        zset    key id → created; expired keys are removed when it is listed
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self, cast

import redis
from pydantic import SecretStr

from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.schema.wire import utc_time

#: A tenant's name is part of keys in Redis and of paths in the store.
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FORM = re.compile(r"(mf_([0-9a-f]{12})_[0-9a-f]{48})([0-9a-f]{8})")


class Scope(StrEnum):
    """What a key allows.  ``admin`` is for operators: it allows everything, including what only operators may do.

    ``jobs:interactive``, with ``jobs:write``, allows jobs of priority ``interactive``, which go before all others.
    ``fleet`` is for autoscalers: it shows how many jobs and workers a model has, of all tenants, and nothing else.
    """

    READ = "jobs:read"
    WRITE = "jobs:write"
    #: To see and rotate the secret that signs the tenant's webhooks: whoever knows it can forge them.
    WEBHOOK_SECRET = "webhooks:secret"  # noqa: S105 - a scope's name
    INTERACTIVE = "jobs:interactive"
    FLEET = "fleet"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """The record of a key, without the key itself.  sha256: of its text."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    sha256: bytes = field(repr=False)

    @classmethod
    def from_fields(cls, key_id: str, fields: Mapping[str, str]) -> Self:
        """Read the key's Redis hash."""
        return cls(
            id=key_id,
            tenant=fields["tenant"],
            # One that only a newer version knows allows nothing here.
            scopes=frozenset(scope for scope in Scope if scope in fields["scopes"].split()),
            created_at=utc_time(int(fields["created_ms"])),
            expires_at=utc_time(int(fields["expires_ms"])) if "expires_ms" in fields else None,
            sha256=bytes.fromhex(fields["sha256"]),
        )


class KeyStore:
    """The keys in Redis.  Every method raises QueueUnavailable when Redis does not respond."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, tenant: str, scopes: Iterable[Scope], *, lifetime_s: int | None = None) -> tuple[Key, SecretStr]:
        """Create a key and return it; it cannot be read again.  Without ``lifetime_s`` it is valid until revoked.

        Raises ValueError for an invalid tenant name.
        """
        if not TENANT.fullmatch(tenant):
            raise ValueError(
                "A tenant's name has at most 64 letters, digits, '_', '.' and '-', and starts with a letter or digit."
            )
        text = new_key()
        key_id = _id_of(text)
        with redis_errors():
            seconds, _ = self._redis.time()
            fields = {
                "tenant": tenant,
                "scopes": " ".join(sorted(set(scopes))),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "created_ms": str(seconds * 1000),
            }
            pipeline = self._redis.pipeline()
            if lifetime_s is not None:
                fields["expires_ms"] = str((seconds + lifetime_s) * 1000)
            for name, value in fields.items():
                pipeline.hset(_record(key_id), name, value)
            if lifetime_s is not None:
                pipeline.pexpireat(_record(key_id), int(fields["expires_ms"]))
            pipeline.zadd("mf:keys", {key_id: seconds * 1000})
            pipeline.execute()
        return Key.from_fields(key_id, fields), SecretStr(text)

    def find(self, text: str) -> Key | None:
        """Return the record of a key, or None if it is unknown, expired or revoked."""
        key_id = _id_of(text)
        key = self.read(key_id) if key_id else None
        given = hashlib.sha256(text.encode()).digest()
        return key if key is not None and hmac.compare_digest(key.sha256, given) else None

    def read(self, key_id: str) -> Key | None:
        """Return the record of the key with an id, or None if it is unknown, expired or revoked."""
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(_record(key_id)))
        return Key.from_fields(key_id, fields) if fields else None

    def listed(self) -> list[Key]:
        """Return all keys, oldest first."""
        with redis_errors():
            ids = cast("list[str]", self._redis.zrange("mf:keys", 0, -1))
            pipeline = self._redis.pipeline(transaction=False)
            for key_id in ids:
                pipeline.hgetall(_record(key_id))
            found = dict(zip(ids, pipeline.execute(), strict=True))
            expired = [key_id for key_id, fields in found.items() if not fields]
            if expired:
                self._redis.zrem("mf:keys", *expired)
        return [Key.from_fields(key_id, fields) for key_id, fields in found.items() if fields]

    def revoke(self, key_id: str) -> bool:
        """Delete a key; return whether there was one."""
        with redis_errors():
            pipeline = self._redis.pipeline()
            pipeline.delete(_record(key_id))
            pipeline.zrem("mf:keys", key_id)
            return bool(pipeline.execute()[0])


def new_key() -> str:
    """Generate the text of a key."""
    body = f"mf_{secrets.token_hex(6)}_{secrets.token_hex(24)}"
    return body + _checksum(body)


def _id_of(text: str) -> str:
    """Return the id in a key; empty when the text is not a well-formed key."""
    form = _FORM.fullmatch(text)
    return form[2] if form and form[3] == _checksum(form[1]) else ""


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _record(key_id: str) -> str:
    return f"mf:key:{key_id}"
