"""The secrets that sign webhooks: one for each tenant, derived from the service's master secret.

A secret is ``whsec_`` and base64, as Standard Webhooks writes them.  Nothing needs to be stored to derive one, so it
survives the loss of Redis; a tenant that rotates its own gets a further generation (jobs/ledger/webhook_secrets.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
#: The shortest master secret, in bytes.  Source: the Standard Webhooks specification, section "Signature scheme".
MASTER_BYTES = 24
#: Keeps the derived secrets apart from anything else that may be derived from a master secret one day.
_PURPOSE = b"maskfleet webhook secret\0"


def tenant_secret(master: str, tenant: str, generation: str = "") -> str:
    """Return a tenant's secret.  generation: empty for the first.

    HMAC-SHA256, keyed with the master secret's bytes, of the purpose, NUL, the tenant's name and, after the first
    generation, NUL and its name.  A tenant's name cannot contain NUL.
    """
    message = _PURPOSE + tenant.encode() + (b"\0" + generation.encode() if generation else b"")
    return PREFIX + base64.b64encode(hmac.digest(master_bytes(master), message, hashlib.sha256)).decode()


def new_master() -> str:
    """Return a random master secret."""
    return PREFIX + base64.b64encode(secrets.token_bytes(MASTER_BYTES)).decode()


def master_bytes(master: str) -> bytes:
    """Return the bytes of a master secret.  Raises ValueError, without showing it, if it is malformed or too short."""
    try:
        data = base64.b64decode(master.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not master.startswith(PREFIX) or len(data) < MASTER_BYTES:
        raise ValueError(
            f"A webhook secret is {PREFIX} followed by the base64 of at least {MASTER_BYTES} random bytes."
        )
    return data
