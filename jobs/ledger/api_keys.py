"""API keys that are made and revoked while the service runs: their form, and where they are kept.

    mf_<id: 12 hex digits>_<secret: 48 hex digits><CRC-32 of all before it: 8 hex digits>

The id is no secret: it names the key in lists and logs.  The secret is 192 random bits.  By prefix and checksum,
scanners tell a key that leaked from other text, and the door a mistyped one without asking Redis.

Redis holds, all under ``mf:``:

    key:{id}    hash    tenant, scopes, SHA-256 of the key, times; gone when the key expires or is revoked
    keys        zset    key id → created; forgets expired keys when it is listed
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self, cast

import redis
from pydantic import SecretStr

from maskfleet.jobs.ledger.connection import redis_errors
from maskfleet.jobs.schema.base import utc_time

#: A tenant's name is a part of keys in Redis and of paths in the store.
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FORM = re.compile(r"(mf_([0-9a-f]{12})_[0-9a-f]{48})([0-9a-f]{8})")


class Scope(StrEnum):
    """What a key allows.  ``admin`` is for operators: it allows all, and alone what concerns the whole service."""

    READ = "jobs:read"
    WRITE = "jobs:write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; not the key itself."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def from_fields(cls, key_id: str, fields: Mapping[str, str]) -> Self:
        """Read the key's Redis hash."""
        return cls(
            id=key_id,
            tenant=fields["tenant"],
            scopes=frozenset(Scope(name) for name in fields["scopes"].split()),
            created_at=utc_time(int(fields["created_ms"])),
            expires_at=utc_time(int(fields["expires_ms"])) if "expires_ms" in fields else None,
        )


class KeyStore:
    """The keys in Redis.  Every method raises QueueUnavailable when Redis does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, tenant: str, scopes: Iterable[Scope], *, lifetime_s: int | None = None) -> tuple[Key, SecretStr]:
        """Make a key and return it, this once; without ``lifetime_s`` it is valid until it is revoked.

        Raises ValueError for a tenant's name that cannot be one.
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
        """Return what is known of a key, or None when it is unknown, expired or revoked."""
        key_id = _id_of(text)
        if not key_id:
            return None
        with redis_errors():
            fields = cast("dict[str, str]", self._redis.hgetall(_record(key_id)))
        given = hashlib.sha256(text.encode()).hexdigest()
        if not hmac.compare_digest(fields.get("sha256", ""), given):
            return None
        return Key.from_fields(key_id, fields)

    def listed(self) -> list[Key]:
        """Return all keys, the oldest first."""
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
    """Make the text of a key."""
    body = f"mf_{secrets.token_hex(6)}_{secrets.token_hex(24)}"
    return body + _checksum(body)


def _id_of(text: str) -> str:
    """Read the id in a key; empty when the text is not of a key's form."""
    form = _FORM.fullmatch(text)
    return form[2] if form and form[3] == _checksum(form[1]) else ""


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _record(key_id: str) -> str:
    return f"mf:key:{key_id}"
