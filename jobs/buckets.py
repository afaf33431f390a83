"""Which objects, in buckets of the operator's, a tenant's jobs may name in an ``s3_uri``.

A setting of entries such as ``apiary:photos/apiary``: a tenant, a bucket, and a folder in it.  Without a tenant, or
with ``*``, it is for all of them; without a folder, the whole bucket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from maskfleet.jobs.schema.wire import BUCKET, key_fault

_EVERYONE = "*"
_ENTRY = re.compile(rf"(?:(?P<tenant>\*|[A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}):)?(?P<bucket>{BUCKET})(?:/(?P<folder>.*))?")


@dataclass(frozen=True, slots=True)
class AllowedBucket:
    """An entry.  tenant: empty for all.  prefix: of keys; empty, or a folder with its trailing slash."""

    tenant: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an entry.  Raises ValueError."""
        found = _ENTRY.fullmatch(text)
        folder = ((found["folder"] or "") if found else "").removesuffix("/")
        fault = key_fault(folder) if folder else ""
        if not found or fault:
            raise ValueError(
                f"{text!r} is not a bucket that jobs may name. {fault or 'Write it as bucket, bucket/folder, '}"
                f"{'' if fault else 'tenant:bucket or tenant:bucket/folder, with * for all tenants.'}"
            )
        tenant = found["tenant"] or ""
        # A folder, never the beginning of a name: `photos/apiary` must not allow `photos/apiary-private/…`.
        return cls("" if tenant == _EVERYONE else tenant, found["bucket"], f"{folder}/" if folder else "")

    def __str__(self) -> str:
        tenant = f"{self.tenant}:" if self.tenant else ""
        return f"{tenant}{self.bucket}{'/' if self.prefix else ''}{self.prefix}"

    @property
    def uri(self) -> str:
        """What the URIs of its objects begin with."""
        return f"s3://{self.bucket}/{self.prefix}"

    def is_for(self, tenant: str) -> bool:
        """Return whether a tenant's jobs may use it."""
        return self.tenant in ("", tenant)

    def holds(self, bucket: str, key: str) -> bool:
        """Return whether an object is in it; the key must be one in which ``key_fault`` finds none."""
        return bucket == self.bucket and key.startswith(self.prefix)


def bucket_names(allowed: tuple[AllowedBucket, ...]) -> tuple[str, ...]:
    """Return the buckets of the entries, each once."""
    return tuple(dict.fromkeys(one.bucket for one in allowed))
