"""The API under gunicorn, as in production: several processes and threads."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import requests

from maskfleet import Client
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import Priority
from tests.api.caller import claim, job
from tests.api.conftest import KEYS, MODEL
from tests.api.door import Door, open_door
from tests.api.pictures import a_picture
from tests.waiting import wait_until


@pytest.fixture
def door(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Door]:
    """The API; a test may pass its own settings as the fixture's parameter."""
    with open_door(shared_fields, tmp_path, **getattr(request, "param", {})) as running:
        yield running


def test_the_figures_are_those_of_all_processes(door: Door) -> None:
    sent, served_by = 0, set()

    def both_have_served() -> bool:
        nonlocal sent
        door.ask("GET", "/live")
        sent += 1
        served_by.update(path.name for path in door.figures.glob("maskfleet-api-*/counter_*.db"))
        return len(served_by) == 2

    wait_until(both_have_served, 30, every_s=0)
    for _ in range(5):
        counted = re.search(
            r'requests_total{method="GET",route="/live",status="200"} (\S+)', door.ask("GET", "/metrics").text
        )
        assert counted is not None
        assert float(counted[1]) == sent


def test_many_wait_for_a_job_and_the_door_stays_open(door: Door, ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = door.ask("POST", "/v1/jobs", body=job()).json()["id"]
    responses: list[requests.Response] = []

    def wait_for_the_job() -> None:
        responses.append(door.ask("GET", f"/v1/jobs/{job_id}", Prefer="wait=30"))

    waiting = [threading.Thread(target=wait_for_the_job) for _ in range(100)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: door.held() == 100, 20)
    assert door.ask("GET", "/live", timeout=10).status_code == 200
    ledger.cancel(job_id, "apiary")
    for thread in waiting:
        thread.join()

    assert {response.json()["status"] for response in responses} == {"canceled"}
    assert all("Preference-Applied" in response.headers for response in responses)


def test_a_job_is_followed_while_the_door_stays_open(door: Door, ledger: Ledger) -> None:
    job_id = door.ask("POST", "/v1/jobs", body=job()).json()["id"]

    with door.follow(job_id) as events:
        first = next(events)
        record = claim(job_id, ledger)
        second = next(events)
        assert door.ask("GET", "/live").status_code == 200
        ledger.fail(record, "image_corrupt", "The JPEG file is damaged.")
        rest = list(events)

    assert [event["status"] for event in (first, second, *rest)] == ["queued", "processing", "failed"]


@pytest.mark.parametrize("door", [{"max_stream_s": "2"}], indirect=True)
def test_the_client_follows_a_job_over_streams_that_end_before_it(door: Door, ledger: Ledger) -> None:
    seen: list[JobView] = []

    def streams() -> int:
        found = re.search(
            r'requests_total{method="GET",route="/v1/jobs/<job_id>/events",status="200"} (\d+)',
            door.ask("GET", "/metrics").text,
        )
        return int(found[1]) if found else 0

    with Client(door.url, KEYS["apiary"]) as client:
        job_id = client.submit(photo=a_picture(), mode="everything").id
        watching = threading.Thread(target=lambda: seen.extend(client.watch(job_id, timeout_s=60)))
        watching.start()
        wait_until(lambda: streams() == 2, 20)
        ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
        watching.join()

    assert seen[0].status == "queued"
    assert seen[-1].status == "failed"
    assert len({view.model_dump_json() for view in seen}) == len(seen) <= 3


def test_two_hundred_submits_at_once_with_one_key_make_one_job(
    door: Door, ledger: Ledger, redis_client: redis.Redis
) -> None:
    responses: list[requests.Response] = []
    together = threading.Barrier(200)

    def submit() -> None:
        together.wait(30)
        responses.append(door.ask("POST", "/v1/jobs", body=job(), **{"Idempotency-Key": "order-42"}))

    callers = [threading.Thread(target=submit) for _ in range(200)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()

    assert {response.status_code for response in responses} == {202}
    (job_id,) = {response.json()["id"] for response in responses}
    assert sum("Idempotency-Replayed" not in response.headers for response in responses) == 1
    assert len(responses) == 200
    assert [record.id for record in ledger.page_of("apiary", limit=10).records] == [job_id]
    assert redis_client.llen(queue_name(MODEL, Priority.NORMAL)) == 1


def test_sigterm_ends_streams_and_the_server(door: Door) -> None:
    job_id = door.ask("POST", "/v1/jobs", body=job()).json()["id"]
    with door.follow(job_id) as events:
        next(events)

        began = time.monotonic()
        door.process.send_signal(signal.SIGTERM)
        rest = list(events)
        assert door.process.wait(10) == 0

    assert time.monotonic() - began < 8
    assert rest == []
    lines = door.log.read_text().splitlines()
    assert all(line.startswith("{") for line in lines), lines


def test_sigterm_lets_go_of_those_who_wait_and_ends_the_server(door: Door) -> None:
    job_id = door.ask("POST", "/v1/jobs", body=job()).json()["id"]
    responses: list[requests.Response] = []
    waiting = threading.Thread(target=lambda: responses.append(door.ask("GET", f"/v1/jobs/{job_id}", Prefer="wait=30")))
    waiting.start()
    wait_until(lambda: door.held() == 1, 20)

    began = time.monotonic()
    door.process.send_signal(signal.SIGTERM)
    assert door.process.wait(10) == 0
    waiting.join()

    assert time.monotonic() - began < 8
    assert responses[0].json()["status"] == "queued"
    assert list(door.figures.glob("maskfleet-api-*")) == []
    lines = door.log.read_text().splitlines()
    assert all(line.startswith("{") for line in lines), lines


@pytest.mark.parametrize(
    ("door", "links_begin_with"),
    [({"trusted_proxies": "0"}, "http://"), ({"trusted_proxies": "1"}, "https://")],
    indirect=["door"],
    ids=["no proxy is trusted", "one is"],
)
def test_a_scheme_is_taken_from_a_header_only_behind_a_proxy_that_is_trusted(door: Door, links_begin_with: str) -> None:
    """These requests come from 127.0.0.1, which gunicorn by itself believes."""
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}

    response = door.ask("POST", "/v1/jobs", body=job(), **forged)

    own = door.url.removeprefix("http://")
    assert response.json()["urls"]["self"].startswith(f"{links_begin_with}{own}/v1/jobs/")
    assert ("Strict-Transport-Security" in response.headers) == (links_begin_with == "https://")
