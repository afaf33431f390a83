"""``python -m maskfleet.stack.buckets``: create the bucket and those that jobs may name, if they are missing."""

from __future__ import annotations

from maskfleet.jobs.buckets import bucket_names
from maskfleet.jobs.errors import NotFound
from maskfleet.jobs.logs import configure_logs, get_logger
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.storage import Store

logger = get_logger()


def make_buckets(settings: ApiSettings) -> None:
    """Create the missing buckets; raises StoreUnavailable if the store does not respond."""
    for bucket in dict.fromkeys((settings.bucket, *bucket_names(settings.allowed_buckets))):
        store = Store(settings.model_copy(update={"bucket": bucket}))
        try:
            store.ping()
        except NotFound:
            store.make_bucket()
            logger.info("bucket_made", bucket=bucket)


def main() -> None:
    settings = ApiSettings()
    configure_logs(settings.log_level, program="buckets")
    make_buckets(settings)


if __name__ == "__main__":
    main()
