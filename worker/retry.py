"""Whether a failed attempt is retried, and when: a pure function of the error and the job's history."""

from __future__ import annotations

from dataclasses import dataclass

from maskfleet.jobs.errors import CallerError, JobError, NodeFault, QueueUnavailable, StoreUnavailable

#: About how long the job waits after its first failed attempt; each further one doubles it.
FIRST_WAIT_S = 2.0
#: A job comes back within about so long after an outage, however long that was.
LONGEST_WAIT_S = 300.0
#: Errors that another attempt would only repeat.
FINAL_CODES = frozenset({"timeout"})
#: Outages hit all jobs alike, so no job is to blame: while they last, attempts are not charged.  Nor are they for what
#: may be a node's own fault.
OUTAGES = (StoreUnavailable, QueueUnavailable)


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Queue the job again, due after ``delay_s``.  charged: the attempt counts."""

    delay_s: float
    charged: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job as failed."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Patience:
    """A job's limits: how many charged attempts it has, and how long after its first claim outages are not charged."""

    max_attempts: int
    outage_s: float


def decide(
    error: JobError, attempt: int, tried_for_s: float, patience: Patience, jitter: float, *, agreed: bool = False
) -> TryAgain | GiveUp:
    """Decide what follows after attempt number ``attempt``, from 1, failed with ``error``.

    tried_for_s: how long after the job's first claim the attempt began.
    jitter: a random number in [0, 1), which scales the wait to between half and one and a half times its length.
    agreed: whether another node met the same NodeFault with this job.
    """
    if isinstance(error, CallerError) or error.code in FINAL_CODES:
        return GiveUp(error.code, error.detail)
    if isinstance(error, NodeFault) and agreed:
        return GiveUp(error.verdict.code, error.verdict.detail)
    if isinstance(error, (*OUTAGES, NodeFault)) and tried_for_s < patience.outage_s:
        # Waiting as long as the job has been tried so far doubles that time with each attempt; no counter is needed.
        return TryAgain(_wait_s(tried_for_s, jitter), charged=False)
    if attempt >= patience.max_attempts:
        final = error.verdict if isinstance(error, NodeFault) else error
        return GiveUp(final.code, final.detail)
    return TryAgain(_wait_s(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 32), jitter), charged=True)


def _wait_s(about_s: float, jitter: float) -> float:
    return min(max(about_s, FIRST_WAIT_S), LONGEST_WAIT_S) * (0.5 + jitter)
