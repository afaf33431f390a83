"""Whether a broken attempt is followed by another, and when: a pure function of the error and the count."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import CallerError, JobError

#: About how long the job waits after its first broken attempt; each further one doubles it.
FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 300.0
#: What another attempt would only meet again.
FINAL_CODES = frozenset({"timeout"})


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Queue the job again, due after ``delay_s``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job as failed."""

    code: str
    detail: str


def decide(error: JobError, attempt: int, max_attempts: int, jitter: float) -> TryAgain | GiveUp:
    """Decide after attempt number ``attempt``, from 1, broke with ``error``.

    jitter: a random number in [0, 1), which spreads the waits over half to one and a half times their length.
    """
    if isinstance(error, CallerError) or error.code in FINAL_CODES or attempt >= max_attempts:
        return GiveUp(error.code, error.detail)
    wait_s = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 32), LONGEST_WAIT_S)
    return TryAgain(wait_s * (0.5 + jitter))
