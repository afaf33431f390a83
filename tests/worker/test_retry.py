"""The decision after a broken attempt."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import (
    AttemptFailed,
    CallerError,
    InvalidImage,
    InvalidPrompt,
    JobError,
    QueueUnavailable,
    StoreUnavailable,
)
from worker.retry import LONGEST_WAIT_S, GiveUp, TryAgain, decide

SERVICE_ERRORS = [StoreUnavailable(), QueueUnavailable(), AttemptFailed("internal_error", "It broke.")]
CALLERS_ERRORS: list[CallerError] = [
    InvalidImage("image_empty", "No bytes."),
    InvalidPrompt("point_outside_image", "Off."),
]
attempts = st.integers(1, 10_000)
jitters = st.floats(0, 1, exclude_max=True)


@given(st.sampled_from(CALLERS_ERRORS), attempts, jitters)
def test_what_the_caller_did_wrong_is_never_tried_again(error: JobError, attempt: int, jitter: float) -> None:
    assert decide(error, attempt, 10**9, jitter) == GiveUp(error.code, error.detail)


@given(st.sampled_from(SERVICE_ERRORS), attempts, attempts, jitters)
def test_what_failed_in_service_is_tried_up_to_the_cap(
    error: JobError, attempt: int, max_attempts: int, jitter: float
) -> None:
    decision = decide(error, attempt, max_attempts, jitter)

    assert isinstance(decision, TryAgain) == (attempt < max_attempts)


@given(attempts, jitters)
def test_waits_grow_with_jitter_up_to_a_longest_one(attempt: int, jitter: float) -> None:
    def wait_s(attempt: int) -> float:
        decision = decide(StoreUnavailable(), attempt, 10**9, jitter)
        assert isinstance(decision, TryAgain)
        return decision.delay_s

    assert 0 < wait_s(attempt) <= wait_s(attempt + 1) <= 1.5 * LONGEST_WAIT_S


def test_a_timeout_is_not_tried_again() -> None:
    assert isinstance(decide(AttemptFailed("timeout", "Too long."), 1, 3, 0.5), GiveUp)
