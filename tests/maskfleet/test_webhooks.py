"""Webhooks on the receiving side: which are accepted, and which are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import requests
from standardwebhooks import Webhook

from maskfleet import verify_webhook
from maskfleet.client.errors import WebhookRejected
from maskfleet.jobs.schema.events import Event, EventData, Ping, PingData, UnknownEvent
from maskfleet.jobs.schema.record import JobUrls
from maskfleet.jobs.schema.spec import EventName
from maskfleet.stack.receiver import Receiver
from tests.conftest import WEBHOOK_SECRET

OTHER_SECRET = "whsec_YW5vdGhlciBzZWNyZXQgZW50aXJlbHk="
EVENT = Event(
    type="job.succeeded",
    timestamp=datetime(2026, 1, 2, tzinfo=UTC),
    data=EventData(
        id=f"job_{'a' * 32}",
        status=EventName.SUCCEEDED,
        mode="box",
        model="sam-demo",
        attempt=1,
        queue_s=0.5,
        run_s=1.5,
        masks=3,
        best_score=0.9,
        metrics=None,
        error=None,
        metadata={"größe": "ü"},
        urls=JobUrls(
            self="http://a/1", events="http://a/2", result="http://a/3", cancel="http://a/4", retry="http://a/5"
        ),
    ),
)
BODY = EVENT.model_dump_json().encode()


def signed(body: bytes = BODY, *, secret: str = WEBHOOK_SECRET, age: timedelta = timedelta(0)) -> dict[str, str]:
    sent = datetime.now(UTC) - age
    return {
        "Webhook-Id": "dlv_1",
        "Webhook-Timestamp": str(int(sent.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("dlv_1", sent, body.decode()),
    }


def test_a_signed_webhook_gives_its_event() -> None:
    assert verify_webhook(BODY, signed(), WEBHOOK_SECRET) == EVENT


def test_a_signed_ping_gives_a_ping() -> None:
    ping = Ping(timestamp=datetime(2026, 1, 2, tzinfo=UTC), data=PingData(url="https://example.com/hook"))
    body = ping.model_dump_json().encode()

    assert verify_webhook(body, signed(body), WEBHOOK_SECRET) == ping


def test_any_one_of_several_signatures_will_do_while_secrets_are_rotated() -> None:
    headers = signed()
    headers["Webhook-Signature"] = f"{signed(secret=OTHER_SECRET)['Webhook-Signature']} {headers['Webhook-Signature']}"

    assert verify_webhook(BODY, headers, WEBHOOK_SECRET) == EVENT


@pytest.mark.parametrize("secrets", [(WEBHOOK_SECRET, OTHER_SECRET), (OTHER_SECRET, WEBHOOK_SECRET)])
def test_any_one_of_several_secrets_will_do_while_they_are_rotated(secrets: tuple[str, ...]) -> None:
    assert verify_webhook(BODY, signed(), secrets) == EVENT
    assert verify_webhook(BODY, signed(secret=OTHER_SECRET), iter(secrets)) == EVENT


def test_a_changed_body_is_refused() -> None:
    with pytest.raises(WebhookRejected, match=r"^wrong_signature: "):
        verify_webhook(BODY.replace(b'"masks":3', b'"masks":4'), signed(), WEBHOOK_SECRET)


def test_another_secret_is_refused() -> None:
    with pytest.raises(WebhookRejected, match=r"^wrong_signature: "):
        verify_webhook(BODY, signed(secret=OTHER_SECRET), WEBHOOK_SECRET)


@pytest.mark.parametrize(
    ("age", "code"), [(timedelta(minutes=6), "too_old"), (-timedelta(minutes=6), "too_new"), (timedelta(50), "too_old")]
)
def test_a_timestamp_more_than_five_minutes_off_is_refused(age: timedelta, code: str) -> None:
    with pytest.raises(WebhookRejected) as raised:
        verify_webhook(BODY, signed(age=age), WEBHOOK_SECRET)

    assert raised.value.code == code


def test_how_far_a_timestamp_may_be_off_can_be_chosen() -> None:
    headers = signed(age=timedelta(minutes=6))

    assert verify_webhook(BODY, headers, WEBHOOK_SECRET, tolerance_s=3600) == EVENT
    with pytest.raises(WebhookRejected, match="too_old"):
        verify_webhook(BODY, signed(age=timedelta(seconds=30)), WEBHOOK_SECRET, tolerance_s=10)


def test_a_timestamp_that_was_changed_does_not_fit_its_signature() -> None:
    headers = signed(age=timedelta(hours=2))
    headers["Webhook-Timestamp"] = str(int(datetime.now(UTC).timestamp()))

    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(BODY, headers, WEBHOOK_SECRET)


@pytest.mark.parametrize("timestamp", ["soon", "-1", "1e9", "nan", "1_0", "٣", "9" * 400])
def test_a_timestamp_that_is_no_number_of_seconds_is_refused(timestamp: str) -> None:
    with pytest.raises(WebhookRejected, match="invalid_timestamp"):
        verify_webhook(BODY, {**signed(), "Webhook-Timestamp": timestamp}, WEBHOOK_SECRET)


@pytest.mark.parametrize("name", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_header_that_is_missing_is_named(name: str) -> None:
    headers = {key: value for key, value in signed().items() if key != name}

    with pytest.raises(WebhookRejected, match=rf"^missing_header: .*{name.lower()}"):
        verify_webhook(BODY, headers, WEBHOOK_SECRET)


@pytest.mark.parametrize("signature", ["v1", "v1,???", "v2,AAAA", "v1,AAAA,BBBB", "nonsense v1", "v1,é"])
def test_a_malformed_signature_is_refused_like_any_other(signature: str) -> None:
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(BODY, {**signed(), "Webhook-Signature": signature}, WEBHOOK_SECRET)


def test_a_malformed_signature_beside_a_good_one_does_no_harm() -> None:
    headers = signed()
    headers["Webhook-Signature"] = f"nonsense v1a,abc {headers['Webhook-Signature']} v1"

    assert verify_webhook(BODY, headers, WEBHOOK_SECRET) == EVENT


def test_an_event_of_a_type_that_only_a_newer_server_knows_is_returned_as_it_is() -> None:
    body = b'{"type": "image.found", "timestamp": "2026-01-02T00:00:00Z", "data": {"tint": "blue"}, "tint": 1}'

    event = verify_webhook(body, signed(body), WEBHOOK_SECRET)

    assert isinstance(event, UnknownEvent)
    assert (event.type, event.data, event.model_extra) == ("image.found", {"tint": "blue"}, {"tint": 1})


def test_a_known_event_with_a_new_field_and_a_new_state_is_returned_with_both() -> None:
    body = BODY.replace(b'"mode"', b'"tint":"blue","mode"').replace(b"succeeded", b"paused")

    event = verify_webhook(body, signed(body), WEBHOOK_SECRET)

    assert isinstance(event, Event)
    assert (event.type, event.data.status, event.data.model_extra) == ("job.paused", "paused", {"tint": "blue"})


@pytest.mark.parametrize("body", [b"[]", b"{}", b"not json"])
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRejected, match=r"^unknown_event: .*is not an event"):
        verify_webhook(body, signed(body), WEBHOOK_SECRET)


@pytest.mark.parametrize("secrets", ["", "whsec_", "whsec_a", [], ["whsec_\n"]])
def test_a_secret_that_is_none_is_the_receivers_own_fault_and_not_shown(secrets: str | list[str]) -> None:
    with pytest.raises(ValueError, match="secret") as raised:
        verify_webhook(BODY, signed(), secrets)

    assert not isinstance(raised.value, WebhookRejected)
    assert "whsec_a" not in str(raised.value)


def test_a_body_that_is_no_text_is_refused() -> None:
    with pytest.raises(WebhookRejected, match="wrong_signature"):
        verify_webhook(b"\xff\xfe", signed(), WEBHOOK_SECRET)


def test_the_receiver_keeps_a_verified_event_once_however_often_it_comes(receiver: Receiver) -> None:
    answers = [requests.post(receiver.url, data=BODY, headers=signed(), timeout=5).status_code for _ in range(2)]

    assert answers == [204, 204]
    assert receiver.wait_for(EVENT.data.id, timeout_s=5) == EVENT
    assert receiver.events == (EVENT,)


def test_the_receiver_answers_401_to_what_it_does_not_believe(receiver: Receiver) -> None:
    answer = requests.post(receiver.url, data=BODY + b" ", headers=signed(), timeout=5)

    assert answer.status_code == 401
    assert receiver.events == ()
    assert len(receiver.refused) == 1


def test_the_receiver_takes_no_endless_body(receiver: Receiver) -> None:
    answer = requests.post(receiver.url, data=b" " * (65 * 1024), headers=signed(), timeout=5)

    assert answer.status_code == 413


def test_waiting_for_an_event_that_does_not_come_ends_at_the_deadline(receiver: Receiver) -> None:
    with pytest.raises(TimeoutError, match="job_never"):
        receiver.wait_for("job_never", timeout_s=0.1)
