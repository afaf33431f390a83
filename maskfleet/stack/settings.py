"""The settings of the local stack's programs: those given, and the stack's own for the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maskfleet.data import DEMO_MODEL
from maskfleet.jobs.buckets import AllowedBucket
from maskfleet.jobs.settings import ApiSettings, CourierSettings
from maskfleet.stack.folder import StackKeys
from maskfleet.worker.node.machine import usable_cores

#: A second bucket, which jobs may name in an ``s3_uri`` without further setup.
PHOTOS_BUCKET = "photos"
#: The tenant of the stack's own key.
TENANT = "local"


class NoModel(RuntimeError):
    """There is no model to use; the message says what to set."""


@dataclass(frozen=True, slots=True)
class StackSettings:
    """The settings of a local stack.

    ``redis_url`` and ``s3_endpoint`` are None if the stack starts its own.  ``environment`` goes to every program.
    """

    redis_url: str | None
    s3_endpoint: str | None
    s3_access_key: str
    s3_secret_key: str
    bucket: str
    allowed_buckets: tuple[AllowedBucket, ...]
    egress_deny: tuple[str, ...]
    api_key: str
    public_url: str
    environment: Mapping[str, str]

    @classmethod
    def read(cls, keys: StackKeys, model: str) -> Self:
        """Read the environment, and the folder's keys for what it does not set.  Raises NoModel."""
        api, courier = ApiSettings(), CourierSettings()
        given = api.model_fields_set
        own_store = "s3_endpoint" not in given
        access_key, secret_key = api.s3_access_key.get_secret_value(), api.s3_secret_key.get_secret_value()
        if own_store:
            access_key, secret_key = access_key or keys.s3_access_key, secret_key or keys.s3_secret_key
        pairs = [pair.get_secret_value() for pair in api.api_keys]
        # A key given as a digest is of no use to the user of this stack, who needs one in plain text.
        clear = [key for _, _, key in (pair.partition(":") for pair in pairs) if key and not key.startswith("sha256:")]
        if not clear:
            pairs, clear = [*pairs, f"{TENANT}:{keys.api_key}"], [keys.api_key]
        buckets = api.allowed_buckets if "allowed_buckets" in given else (AllowedBucket.parse(PHOTOS_BUCKET),)
        masters = courier.masters or (keys.webhook_master_secret,)
        return cls(
            redis_url=api.redis_url.get_secret_value() if "redis_url" in given else None,
            s3_endpoint=None if own_store else api.s3_endpoint,
            s3_access_key=access_key,
            s3_secret_key=secret_key,
            bucket=api.bucket,
            allowed_buckets=buckets,
            egress_deny=api.egress_deny,
            api_key=clear[0],
            public_url=api.public_url,
            environment={
                "MASKFLEET_S3_ACCESS_KEY": access_key,
                "MASKFLEET_S3_SECRET_KEY": secret_key,
                "MASKFLEET_API_KEYS": ",".join(pairs),
                "MASKFLEET_ALLOWED_BUCKETS": ",".join(map(str, buckets)),
                "MASKFLEET_WEBHOOK_MASTER_SECRETS": ",".join(masters),
                "MASKFLEET_MODEL": _choose_model(model or (api.model if "model" in given else "")),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(usable_cores()),
            },
        )


def _choose_model(wanted: str) -> str:
    model = wanted or str(DEMO_MODEL)
    if not Path(model).is_dir():
        if model.startswith(("/", ".")):
            raise NoModel(f"There is no folder {model}; a model is a hub id or a folder with a SAM checkpoint.")
        return model
    # The programs run in the data folder, where a relative path would point elsewhere.
    return str(Path(model).resolve())
