"""A job's event stream: what it sends, what it does not repeat, and how many of them may be open."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import redis
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Reply
from maskfleet.jobs.schema.record import JobRecord, JobView, ProgressView
from maskfleet.jobs.status import Stage, Status
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, check_problem, claim, run_to_success
from tests.api.conftest import KEYS, SettingsMaker


@dataclass(frozen=True)
class Sent:
    """One event."""

    id: int
    type: str
    job: JobView


class Stream:
    """A response that is read as it arrives."""

    def __init__(self, response: TestResponse) -> None:
        assert response.status_code == 200, response.text
        assert response.mimetype == "text/event-stream"
        self.headers = response.headers
        self.comments = 0
        self._blocks = self._read(response)

    def next(self) -> Sent:
        return next(self._blocks)

    def rest(self) -> list[Sent]:
        """Return everything until the stream ends by itself."""
        return list(self._blocks)

    def _read(self, response: TestResponse) -> Iterator[Sent]:
        text = ""
        for piece in response.response:
            text += piece if isinstance(piece, str) else piece.decode()
            while "\n\n" in text:
                block, _, text = text.partition("\n\n")
                if block.startswith(":"):
                    self.comments += 1
                elif not block.startswith("retry:"):
                    found = re.fullmatch(r"id: (\d+)\nevent: (\w+)\ndata: (.*)", block)
                    assert found is not None, block
                    yield Sent(int(found[1]), found[2], JobView.model_validate_json(found[3]))


@contextmanager
def follow(caller: Caller, job_id: str, **headers: str) -> Iterator[Stream]:
    with caller.get(f"/v1/jobs/{job_id}/events", **headers) as response:
        yield Stream(response)


def beat(ledger: Ledger, record: JobRecord, done: int) -> Reply:
    return ledger.beat(record, ProgressView(stage=Stage.DECODING, done=done, total=9, masks=done), lease_s=30)


@pytest.fixture
def patient(make_settings: SettingsMaker, ledger: Ledger) -> Caller:
    """A tenant of a service with short heartbeats and short streams, which end soon after a job's place was checked."""
    return Caller(create_app(make_settings(heartbeat_s=0.05, max_stream_s=3)), KEYS["apiary"])


def test_a_stream_begins_with_the_job_and_goes_on_with_each_change(
    apiary: Caller, ledger: Ledger, store: Store
) -> None:
    job_id = apiary.a_job()

    with follow(apiary, job_id) as stream:
        first = stream.next()
        record = claim(job_id, ledger)
        second = stream.next()
        beat(ledger, record, done=3)
        third = stream.next()
        ledger.fail(record, "image_corrupt", "The JPEG file is damaged.")
        last = stream.rest()

    sent = [first, second, third, *last]
    assert [event.job.status for event in sent] == ["queued", "processing", "processing", "failed"]
    assert [event.id for event in sent] == sorted({event.id for event in sent})
    assert {event.type for event in sent} == {"job"}
    assert (first.job.queue_position, third.job.progress) == (
        0,
        ProgressView(stage=Stage.DECODING, done=3, total=9, masks=3),
    )
    # A failed job that is got also shows its spec, which a stream would repeat with each change.
    got = JobView.model_validate_json(apiary.get(f"/v1/jobs/{job_id}").data)
    assert got.spec is not None
    assert last[0].job == got.model_copy(update={"spec": None})


def test_an_ended_job_is_sent_once_and_the_stream_ends(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    run_to_success(job_id, ledger, store)

    with follow(apiary, job_id) as stream:
        (only,) = stream.rest()

    assert only.job.status is Status.SUCCEEDED
    seen = apiary.get(f"/v1/jobs/{job_id}/events", Last_Event_ID=str(only.id))
    assert (seen.status_code, seen.data) == (204, b"")


def test_a_reader_that_comes_back_is_sent_nothing_that_it_has_seen(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    record = claim(job_id, ledger)
    with follow(apiary, job_id) as stream:
        seen = stream.next()

    with follow(apiary, job_id, Last_Event_ID=str(seen.id)) as stream:
        beat(ledger, record, done=1)
        changed = stream.next()
    beat(ledger, record, done=2)
    beat(ledger, record, done=3)
    with follow(apiary, job_id, Last_Event_ID=str(changed.id)) as stream:
        caught_up = stream.next()
    with follow(apiary, job_id, Last_Event_ID=str(caught_up.id), Prefer="wait=1") as stream:
        assert stream.rest() == []

    assert (changed.id, caught_up.id) == (seen.id + 1, seen.id + 3)
    assert (changed.job.progress, caught_up.job.progress) != (seen.job.progress, changed.job.progress)
    assert caught_up.job.progress is not None
    assert caught_up.job.progress.done == 3


@pytest.mark.parametrize("last_event_id", ["", "x", "-1", "7; DROP", "9" * 40])
def test_an_id_that_was_never_sent_is_passed_over(apiary: Caller, last_event_id: str) -> None:
    with follow(apiary, apiary.a_job(), Last_Event_ID=last_event_id) as stream:
        assert stream.next().job.status is Status.QUEUED


def test_late_progress_never_follows_the_end(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    record = claim(job_id, ledger)
    with follow(apiary, job_id) as stream:
        stream.next()
        ledger.fail(record, "image_corrupt", "The JPEG file is damaged.")
        late = [beat(ledger, record, done=done) for done in range(3)]
        after = stream.rest()
    with follow(apiary, job_id) as stream:
        again = stream.rest()

    assert late == [Reply.FENCED] * 3
    assert [event.job.status for event in after] == ["failed"]
    assert again == after
    assert again[0].job.progress is None


def test_progress_of_a_worker_that_lost_its_job_is_not_sent(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    frozen = claim(job_id, ledger)
    ledger.release(frozen, delay_s=0, charged=True)
    successor = claim(job_id, ledger)
    beat(ledger, successor, done=5)

    with follow(apiary, job_id, Prefer="wait=1") as stream:
        first = stream.next()
        reply = beat(ledger, frozen, done=1)
        rest = stream.rest()

    assert first.job.progress is not None
    assert (first.job.progress.done, reply, rest) == (5, Reply.FENCED, [])


def test_a_queued_job_is_sent_again_when_it_moves_up(apiary: Caller, ledger: Ledger) -> None:
    ahead, behind = apiary.a_job(), apiary.a_job()

    with follow(apiary, behind) as stream:
        first = stream.next()
        claim(ahead, ledger)
        second = stream.next()

    assert (first.job.queue_position, second.job.queue_position) == (1, 0)
    assert first.id == second.id


def test_a_quiet_stream_says_that_it_lives_and_ends_in_time(patient: Caller) -> None:
    with follow(patient, patient.a_job()) as stream:
        sent = stream.rest()

    assert len(sent) == 1
    assert stream.comments >= 2


def test_a_reader_says_how_long_it_listens(apiary: Caller) -> None:
    with follow(apiary, apiary.a_job(), Prefer="wait=1") as stream:
        assert len(stream.rest()) == 1
    with follow(apiary, apiary.a_job(), Prefer="wait=99999") as stream:
        assert stream.headers["Preference-Applied"] == "wait=600"


def test_a_stream_ends_when_its_job_is_deleted(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    with follow(apiary, job_id) as stream:
        stream.next()
        ledger.cancel(job_id, "apiary")
        ledger.delete(job_id, "apiary")

        assert stream.rest() == []


def test_a_stream_ends_without_a_fault_when_redis_goes_away(
    make_settings: SettingsMaker, redis_client: redis.Redis, redis_url: str
) -> None:
    redis_client.execute_command("ACL", "SETUSER", "door", "on", ">word", "~*", "+@all")
    caller = Caller(
        create_app(make_settings(redis_url=redis_url.replace("redis://", "redis://door:word@"))), KEYS["apiary"]
    )
    with follow(caller, caller.a_job()) as stream:
        stream.next()
        redis_client.execute_command("ACL", "DELUSER", "door")  # its connections are closed, and no new one is accepted

        assert stream.rest() == []


def test_streams_are_limited_by_tenant_and_in_all_and_a_place_comes_free_when_one_is_left(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    app = create_app(make_settings(max_held_per_tenant=2, max_held=3))
    caller, other = Caller(app, KEYS["apiary"]), Caller(app, KEYS["bakery"])
    job_id, others = caller.a_job(), other.a_job()

    with follow(caller, job_id), follow(caller, job_id):
        refused = caller.get(f"/v1/jobs/{job_id}/events")
        held = caller.get(f"/v1/jobs/{job_id}", Prefer="wait=30")
        pinged = caller.post("/v1/webhooks/ping", {"url": "https://example.com/hook"})
        with follow(other, others) as stream:
            assert stream.next().job.id == others
            full = other.get(f"/v1/jobs/{others}/events")
            not_held = other.get(f"/v1/jobs/{others}", Prefer="wait=30")
    for _ in range(3):  # a HEAD has a stream's headers and none of its body
        caller.app.test_client().head(
            f"/v1/jobs/{job_id}/events", headers={"Authorization": f"Bearer {KEYS['apiary']}"}
        ).close()

    for response in (refused, held, pinged):
        assert "2 of your" in check_problem(response, 429, "too_many_held").detail
    check_problem(full, 503, "too_many_streams")
    check_problem(not_held, 503, "too_many_held")
    for response in (refused, held, pinged, full, not_held):
        assert int(response.headers["Retry-After"]) > 0
    assert redis_client.zcard("mf:deliveries") == 0
    with follow(caller, job_id) as stream:
        assert stream.next().job.id == job_id


def test_a_stream_is_described_as_one(apiary: Caller) -> None:
    described = apiary.get("/openapi.json").json["paths"]["/v1/jobs/{job_id}/events"]["get"]

    assert list(described["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"job_id", "Last-Event-ID"} <= {parameter["name"] for parameter in described["parameters"]}
    assert "Last-Event-ID" in json.dumps(described["description"])
