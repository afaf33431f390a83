"""The decision after a failed attempt."""

from hypothesis import given, strategies as st

from maskfleet.jobs.errors import (
    AttemptFailed,
    CallerError,
    InvalidImage,
    InvalidPrompt,
    JobError,
    NodeFault,
    QueueUnavailable,
    StoreUnavailable,
)
from maskfleet.worker.retry import FIRST_WAIT_S, LONGEST_WAIT_S, GiveUp, Patience, TryAgain, decide

OUTAGES = [StoreUnavailable(), QueueUnavailable()]
SERVICE_ERRORS = [*OUTAGES, AttemptFailed("internal_error", "It broke.")]
CALLERS_ERRORS: list[CallerError] = [
    InvalidImage("image_empty", "No bytes."),
    InvalidPrompt("point_outside_image", "Off."),
]
#: No patience with an outage; endless patience.
STRICT, LENIENT = Patience(10**9, 0), Patience(1, 900)
times = st.floats(0, 1e6)
attempts = st.integers(1, 10_000)
jitters = st.floats(0, 1, exclude_max=True)


@given(st.sampled_from(CALLERS_ERRORS), attempts, jitters)
def test_what_the_caller_did_wrong_is_never_tried_again(error: JobError, attempt: int, jitter: float) -> None:
    assert decide(error, attempt, 0, LENIENT, jitter) == GiveUp(error.code, error.detail)


@given(st.sampled_from(SERVICE_ERRORS), attempts, attempts, jitters)
def test_what_failed_in_service_is_tried_up_to_the_cap(
    error: JobError, attempt: int, max_attempts: int, jitter: float
) -> None:
    decision = decide(error, attempt, 0, Patience(max_attempts, 0), jitter)

    assert isinstance(decision, TryAgain) == (attempt < max_attempts)
    assert isinstance(decision, GiveUp) or decision.charged


@given(st.sampled_from(OUTAGES), attempts, times, jitters)
def test_an_outage_charges_no_attempt_while_there_is_patience(
    error: JobError, attempt: int, tried_for_s: float, jitter: float
) -> None:
    decision = decide(error, attempt, tried_for_s, LENIENT, jitter)

    if tried_for_s < LENIENT.outage_s:
        assert isinstance(decision, TryAgain)
        assert not decision.charged
        assert 0.5 * FIRST_WAIT_S <= decision.delay_s <= 1.5 * max(tried_for_s, FIRST_WAIT_S)
    else:
        assert isinstance(decision, GiveUp)


@given(attempts, times, jitters)
def test_what_is_no_outage_counts_however_short_it_was_tried(attempt: int, tried_for_s: float, jitter: float) -> None:
    assert isinstance(decide(SERVICE_ERRORS[-1], attempt, tried_for_s, LENIENT, jitter), GiveUp)


@given(attempts, times, jitters, st.booleans())
def test_a_nodes_fault_fails_no_job_before_another_node_agrees(
    attempt: int, tried_for_s: float, jitter: float, agreed: bool
) -> None:
    missing = InvalidImage("image_not_found", "Gone.")
    fault = NodeFault(missing.code, missing.detail, verdict=missing)

    decision = decide(fault, attempt, tried_for_s, LENIENT, jitter, agreed=agreed)

    if agreed or tried_for_s >= LENIENT.outage_s:
        assert decision == GiveUp("image_not_found", "Gone.")
    else:
        assert isinstance(decision, TryAgain)
        assert not decision.charged


@given(attempts, jitters)
def test_waits_grow_with_jitter_up_to_a_longest_one(attempt: int, jitter: float) -> None:
    def wait_s(attempt: int) -> float:
        decision = decide(StoreUnavailable(), attempt, 0, STRICT, jitter)
        assert isinstance(decision, TryAgain)
        return decision.delay_s

    assert 0 < wait_s(attempt) <= wait_s(attempt + 1) <= 1.5 * LONGEST_WAIT_S


def test_a_timeout_is_not_tried_again() -> None:
    assert isinstance(decide(AttemptFailed("timeout", "Too long."), 1, 0, Patience(3, 900), 0.5), GiveUp)
