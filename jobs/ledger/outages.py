"""What an error of Redis means: an outage, which passes, or a mistake of our own, which must stay loud.

Every error that says that Redis cannot serve now becomes QueueUnavailable.  What remains is a mistake: a script that
fails (``ERR``), a key of the wrong type, an argument that cannot be encoded; and what a lock raises for its holder.
"""

from __future__ import annotations

import redis
from redis.sentinel import MasterNotFoundError

from maskfleet.jobs.errors import QueueUnavailable
from maskfleet.jobs.logs import get_logger

logger = get_logger()

#: The first word of an error → the reason that logs and health checks give, and whether only an operator can end it.
#: Source: the error replies of Valkey 9.1 and Redis 7.
REASONS: dict[str, tuple[str, bool]] = {
    "READONLY": ("read_only", True),  # a replica: a failover that this program has not followed yet
    "UNBLOCKED": ("read_only", True),  # it became a replica during a blocking call
    "NOREPLICAS": ("no_replicas", True),  # min-replicas-to-write
    "MISCONF": ("disk", True),  # what was written before could not be saved
    "OOM": ("full", True),
    "LOADING": ("loading", False),
    "BUSY": ("busy", False),  # a script has run for longer than busy-reply-threshold
    "MASTERDOWN": ("no_primary", True),
    "CLUSTERDOWN": ("cluster", True),
    "TRYAGAIN": ("cluster", False),
    "MOVED": ("cluster", True),
    "ASK": ("cluster", True),
    "NOAUTH": ("credentials", True),
    "WRONGPASS": ("credentials", True),
    "NOPERM": ("permission", True),
    "DENIED": ("permission", True),
    "EXECABORT": ("refused", False),  # a part of a transaction was refused
    "NOSCRIPT": ("refused", False),  # the server has changed since the script was loaded
    "REDIRECT": ("read_only", True),
}
#: The reason when no answer came, or none that can be read.
NOT_RESPONDING = "not_responding"
#: Our own mistakes, and what a lock's holder must hear.
_NOT_OUTAGES = (redis.DataError, redis.WatchError, redis.exceptions.LockError, redis.exceptions.PubSubError)
_REFUSED = "The job queue cannot do this at the moment. Nothing was recorded; send the request again later."
_FULL = "The job queue is full. Nothing was recorded; send the request again later."


def reason_of(error: BaseException) -> str | None:
    """Return why Redis cannot serve now, a value of REASONS or NOT_RESPONDING; None when the error is no outage."""
    if not isinstance(error, redis.RedisError):
        return None
    known = REASONS.get(code_of(error))
    if known is not None:
        return known[0]
    if isinstance(error, MasterNotFoundError):
        return "no_primary"
    # Any answer with an unknown code is a mistake; everything else is a connection that broke, or never was.
    return None if isinstance(error, (redis.ResponseError, *_NOT_OUTAGES)) else NOT_RESPONDING


def code_of(error: redis.RedisError) -> str:
    """Return the code that Redis' answer began with; empty if there was no answer."""
    if error.status_code:
        return error.status_code
    if not isinstance(error, redis.ResponseError):
        return ""
    # Of a pipeline, redis-py puts the command before the answer.
    answer = str(error).rpartition(" of pipeline caused error: ")[2]
    return answer.partition(" ")[0]


def as_unavailable(error: BaseException) -> QueueUnavailable | None:
    """Return the error to raise for an outage; None when the error is no outage."""
    reason = reason_of(error)
    if reason is None:
        return None
    said = f"{type(error).__name__}: {error}"[:500]
    if reason == NOT_RESPONDING:
        return QueueUnavailable(said=said)
    return QueueUnavailable(_FULL if reason == "full" else _REFUSED, reason=reason, said=said)


class OutageLog:
    """Logs an outage when it begins, when its reason changes and when it is over; not at every attempt between.

    doing: what does not happen meanwhile, as an event's name.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._reason = ""

    def note(self, error: QueueUnavailable) -> None:
        """Note that Redis could not serve."""
        if error.reason == self._reason:
            return
        self._reason = error.reason
        needs_somebody = any(error.reason == reason and somebody for reason, somebody in REASONS.values())
        log = logger.error if needs_somebody else logger.warning
        log("queue_unavailable", doing=self._doing, **error.log_fields)

    def broke(self, error: Exception) -> None:
        """Note that our own code failed: the thread goes on, and whatever failed once is likely to fail again."""
        if repr(error) != self._reason:
            self._reason = repr(error)
            logger.error("broke", doing=self._doing, exc_info=error)

    def over(self) -> None:
        """Note that all went well."""
        if self._reason:
            logger.info("queue_available", doing=self._doing, was=self._reason)
            self._reason = ""
