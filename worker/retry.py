"""Whether a broken attempt is followed by another, and when: a pure function of the error and what was before."""

from __future__ import annotations

from dataclasses import dataclass

from maskfleet.jobs.errors import CallerError, JobError, QueueUnavailable, StoreUnavailable

#: About how long the job waits after its first broken attempt; each further one doubles it.
FIRST_WAIT_S = 2.0
#: A job comes back within about so long after an outage, however long that was.
LONGEST_WAIT_S = 300.0
#: What another attempt would only meet again.
FINAL_CODES = frozenset({"timeout"})
#: All jobs meet these alike, so no job is to blame: while they last, attempts do not count.
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
    """What a job is granted: attempts that count, and how long after its first claim an outage's do not."""

    max_attempts: int
    outage_s: float


def decide(error: JobError, attempt: int, tried_for_s: float, patience: Patience, jitter: float) -> TryAgain | GiveUp:
    """Decide after attempt number ``attempt``, from 1, broke with ``error``.

    tried_for_s: how long after the job's first claim the attempt began.
    jitter: a random number in [0, 1), which spreads the waits over half to one and a half times their length.
    """
    if isinstance(error, CallerError) or error.code in FINAL_CODES:
        return GiveUp(error.code, error.detail)
    if isinstance(error, OUTAGES) and tried_for_s < patience.outage_s:
        # To wait as long as it has been tried doubles that time with each attempt; no count is needed.
        return TryAgain(_wait_s(tried_for_s, jitter), charged=False)
    if attempt >= patience.max_attempts:
        return GiveUp(error.code, error.detail)
    return TryAgain(_wait_s(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 32), jitter), charged=True)


def _wait_s(about_s: float, jitter: float) -> float:
    return min(max(about_s, FIRST_WAIT_S), LONGEST_WAIT_S) * (0.5 + jitter)
