"""What the client does when a server is down, refuses, or sends something unexpected."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from maskfleet import Client
from maskfleet.client.download import download
from maskfleet.client.errors import AuthenticationError, Conflict, DamagedFile, NotFound, Refused, Unavailable
from maskfleet.client.events import follow
from maskfleet.client.retries import seconds_of
from maskfleet.client.transport import Transport
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import JobUrls, JobView, Metrics
from maskfleet.jobs.status import Status
from maskfleet.stack.servers import free_port
from tests.maskfleet.scripted_server import Answer, ScriptedServer

JOB = JobView(
    id=f"job_{'a' * 32}",
    status=Status.QUEUED,
    mode="everything",
    model="sam-demo",
    priority="normal",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    urls=JobUrls(self="http://a/1", events="http://a/2", result="http://a/3", cancel="http://a/4", retry="http://a/5"),
)
ACCEPTED = Answer(202, JOB.model_dump_json().encode())


def problem(status: int, code: str, **members: object) -> Answer:
    document = {"type": f"urn:maskfleet:problem:{code}", "title": "No", "status": status, "instance": "1"}
    body = json.dumps({**document, "code": code, "detail": "Do otherwise.", **members}).encode()
    return Answer(status, body, {"Content-Type": "application/problem+json"})


AWAY = problem(503, "queue_unavailable")


@pytest.mark.parametrize("first", [AWAY, Answer(hang_up=0)], ids=["503", "connection closed"])
def test_a_submit_that_is_repeated_sends_the_same_bytes_under_the_same_key(first: Answer, coins: Path) -> None:
    with ScriptedServer(first, ACCEPTED) as server, Client(server.url, "key") as client:
        job = client.submit(photo=coins, mode="everything")

    assert job == JOB
    before, after = server.asked
    assert before.body == after.body
    assert before.headers["idempotency-key"] == after.headers["idempotency-key"]
    assert after.headers["authorization"] == "Bearer key"


def an_event(version: int, job: JobView) -> bytes:
    return f"id: {version}\nevent: job\ndata: {job.model_dump_json()}\n\n".encode()


EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}
ENDED = JOB.model_copy(update={"status": Status.FAILED})


def test_a_job_is_watched_over_one_stream_to_its_end() -> None:
    body = b"retry: 1000\n\n" + an_event(1, JOB) + b": nothing new\n\n" + an_event(2, ENDED)
    with ScriptedServer(Answer(200, body, EVENTS)) as server, Client(server.url, "key") as client:
        seen = list(client.watch(JOB.id, timeout_s=60))

    assert seen == [JOB, ENDED]
    (asked,) = server.asked
    assert (asked.path, asked.headers["prefer"]) == (f"/v1/jobs/{JOB.id}/events", "wait=59")


def test_a_stream_is_taken_up_after_what_was_seen() -> None:
    with ScriptedServer(Answer(200, an_event(8, ENDED), EVENTS)) as server, Transport(server.url, "key") as transport:
        assert list(follow(transport, JOB.id, "7", None)) == [("8", ENDED)]

    assert server.asked[0].headers["last-event-id"] == "7"


@pytest.mark.parametrize(
    "barred",
    [
        problem(503, "too_many_streams"),
        Answer(404, b"<html>No such page</html>"),
        Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}),
        Answer(200, an_event(1, JOB), EVENTS, hang_up=20),
        Answer(200, b"", EVENTS),
        Answer(hang_up=0),
    ],
    ids=["no place", "no such route", "a page", "broken off", "ended at once", "closed"],
)
def test_a_job_is_asked_for_again_and_again_where_streams_are_barred(barred: Answer) -> None:
    queued, ended = (Answer(200, job.model_dump_json().encode()) for job in (JOB, ENDED))
    with ScriptedServer(barred, queued, ended) as server, Client(server.url, "key") as client:
        seen = list(client.watch(JOB.id, timeout_s=60))

    assert seen == [JOB, ENDED]
    assert [asked.path.rpartition("/")[2] for asked in server.asked] == ["events", JOB.id, JOB.id]


def test_a_retry_whose_answer_was_lost_is_not_a_fault() -> None:
    lost = [Answer(hang_up=0), problem(409, "job_not_failed")]
    with ScriptedServer(*lost, Answer(200, JOB.model_dump_json().encode())) as server, Client(server.url, "") as client:
        assert client.retry(JOB.id) == JOB


def test_a_retry_of_a_job_that_ended_otherwise_is_one() -> None:
    succeeded = JOB.model_copy(update={"status": Status.SUCCEEDED})
    answers = problem(409, "job_not_failed"), Answer(200, succeeded.model_dump_json().encode())
    with (
        ScriptedServer(*answers) as server,
        Client(server.url, "") as client,
        pytest.raises(Conflict, match="job_not_failed"),
    ):
        client.retry(JOB.id)


def test_two_submits_are_two_jobs(coins: Path) -> None:
    with ScriptedServer(ACCEPTED) as server, Client(server.url, "key") as client:
        client.submit(photo=coins, mode="everything")
        client.submit(photo=coins, mode="everything")

    first, second = server.asked
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_what_was_left_to_the_defaults_is_left_to_the_server() -> None:
    with ScriptedServer(ACCEPTED) as server, Client(server.url, "key") as client:
        client.submit(photo="s3://photos/bee.jpg", mode="box", prompts=[{"box": [1, 2, 3, 4]}])

    assert json.loads(server.asked[0].body) == {
        "mode": "box",
        "image": {"s3_uri": "s3://photos/bee.jpg"},
        "prompts": [{"box": [1, 2, 3, 4]}],
    }


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthenticationError), (404, NotFound), (409, Conflict), (422, Refused), (429, Refused)]
)
def test_a_refusal_is_raised_at_once_with_the_documents_own_words(status: int, kind: type[Refused]) -> None:
    fault = {"pointer": "/mode", "code": "missing", "detail": "Say which."}
    with (
        ScriptedServer(problem(status, "some_code", errors=[fault])) as server,
        Client(server.url, "key") as client,
        pytest.raises(Refused) as raised,
    ):
        client.get("job_1")

    assert type(raised.value) is kind
    assert (raised.value.code, raised.value.detail, raised.value.status) == ("some_code", "Do otherwise.", status)
    assert [(error.pointer, error.code, error.detail) for error in raised.value.errors] == [
        ("/mode", "missing", "Say which.")
    ]
    assert len(server.asked) == 1


def test_a_server_that_stays_away_is_given_up_after_the_last_try() -> None:
    with (
        ScriptedServer(AWAY) as server,
        Client(server.url, "key", max_tries=2) as client,
        pytest.raises(Unavailable) as raised,
    ):
        client.get("job_1")

    assert (raised.value.code, raised.value.status) == ("queue_unavailable", 503)
    assert len(server.asked) == 2


def test_a_longer_retry_after_than_a_caller_would_sit_through_is_not_waited_for() -> None:
    later = Answer(503, AWAY.body, {"Retry-After": "3600"})
    with ScriptedServer(later) as server, Client(server.url, "key") as client, pytest.raises(Unavailable):
        client.get("job_1")

    assert len(server.asked) == 1


def test_a_retry_after_is_waited_for_and_then_asked_again() -> None:
    later = [Answer(503, AWAY.body, {"Retry-After": "1"}), problem(429, "too_many_requests")]
    later[1] = Answer(429, later[1].body, {"Retry-After": format_datetime(datetime.now(UTC), usegmt=True)})
    said: list[str] = []
    with ScriptedServer(*later, ACCEPTED) as server, Client(server.url, "key", on_retry=said.append) as client:
        assert client.get(JOB.id) == JOB

    assert len(server.asked) == 3
    first, second = (float(re.findall(r"in ([\d.]+) s", line)[0]) for line in said)
    assert first >= 1.0
    assert second < 3.0


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [("7", 7), ("Sat, 01 Jan 2000 00:00:00 GMT", 0), ("soon", 0), ("", 0), ("²", 0)]
)
def test_a_retry_after_is_a_number_or_a_date(retry_after: str, seconds: float) -> None:
    assert max(0.0, seconds_of(retry_after)) == seconds


def test_a_date_far_away_is_not_waited_for() -> None:
    later = Answer(
        503, AWAY.body, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}
    )
    with ScriptedServer(later) as server, Client(server.url, "key") as client, pytest.raises(Unavailable):
        client.get("job_1")

    assert len(server.asked) == 1


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", "key", max_tries=1) as client,
        pytest.raises(Unavailable, match="no_answer"),
    ):
        client.get("job_1")


def test_a_page_of_a_proxy_is_an_error_too() -> None:
    with (
        ScriptedServer(Answer(403, b"<html>no</html>")) as server,
        Client(server.url, "key") as client,
        pytest.raises(Refused, match="http_403"),
    ):
        client.get("job_1")


def test_an_invalid_job_is_refused_before_anything_is_sent() -> None:
    with ScriptedServer(ACCEPTED) as server, Client(server.url, "key") as client, pytest.raises(Refused) as raised:
        client.submit(photo=b"image", mode="box", prompts=[{"box": [9, 2, 3, 4]}])

    assert (raised.value.code, raised.value.errors[0].pointer) == ("invalid_spec", "/prompts/0")
    assert server.asked == []


def manifest_of(url: str, data: bytes, name: str = "masks/0000.png") -> Manifest:
    file = ManifestFile(
        name=name,
        key=f"results/{name}",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type="image/png",
        url=f"{url}/bucket/{name}?signature=1",
    )
    return Manifest(
        job_id=JOB.id,
        attempt=1,
        mode="box",
        model="sam-demo",
        created_at=JOB.created_at,
        image_width=4,
        image_height=3,
        masks=(),
        files=(file,),
        metrics=Metrics(),
    )


def test_a_download_gets_its_name_when_it_is_whole_and_the_store_never_sees_the_api_key(tmp_path: Path) -> None:
    with ScriptedServer(Answer(body=b"mask")) as server, Transport(server.url, "key") as transport:
        download(transport, manifest_of(server.url, b"mask"), tmp_path)

    assert (tmp_path / "masks" / "0000.png").read_bytes() == b"mask"
    assert "authorization" not in server.asked[0].headers
    assert "signature" not in (tmp_path / "manifest.json").read_text()
    assert Manifest.model_validate_json((tmp_path / "manifest.json").read_text()).job_id == JOB.id


@pytest.mark.parametrize("sent", [b"mosk", b"mas", b"masks"])
def test_a_download_that_is_not_the_manifests_file_is_not_kept(tmp_path: Path, sent: bytes) -> None:
    with (
        ScriptedServer(Answer(body=sent)) as server,
        Transport(server.url, "key") as transport,
        pytest.raises(DamagedFile),
    ):
        download(transport, manifest_of(server.url, b"mask"), tmp_path)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_download_that_breaks_off_is_unavailable_and_not_kept(tmp_path: Path) -> None:
    with (
        ScriptedServer(Answer(body=b"mask", hang_up=2)) as server,
        Transport(server.url, "key") as transport,
        pytest.raises(Unavailable, match="download_broken_off"),
    ):
        download(transport, manifest_of(server.url, b"mask"), tmp_path)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "masks/../../outside.png", "."])
def test_no_name_in_a_manifest_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with (
        ScriptedServer(Answer(body=b"mask")) as server,
        Transport(server.url, "key") as transport,
        pytest.raises(DamagedFile, match="outside"),
    ):
        download(transport, manifest_of(server.url, b"mask", name), tmp_path / "result")

    assert server.asked == []
