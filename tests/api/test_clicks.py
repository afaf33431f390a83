"""A click is one request: a job is sent, awaited and answered with its masks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from maskfleet import Client
from maskfleet.api.app import create_app
from maskfleet.api.follow import Watch
from maskfleet.api.long_poll import Waits
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.ends import Ends
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import start_redis
from tests import taking
from tests.api.caller import Caller, as_base64, claim, job, run_to_success
from tests.api.clicking import click, the_job
from tests.api.conftest import KEYS, SettingsMaker
from tests.api.door import Door, open_door
from tests.api.pictures import a_picture
from tests.conftest import ports_in_turn
from tests.waiting import wait_until


@pytest.fixture
def door(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Door]:
    """The API in one process; a test may pass its own settings as the fixture's parameter."""
    with open_door(shared_fields, tmp_path, **{"processes": "1", **getattr(request, "param", {})}) as running:
        yield running


# One request, one answer.


def by_success(job_id: str, ledger: Ledger, store: Store) -> str:
    run_to_success(job_id, ledger, store)
    return "succeeded"


def by_failure(job_id: str, ledger: Ledger, store: Store) -> str:
    ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
    return "failed"


def by_a_cancellation_from_elsewhere(job_id: str, ledger: Ledger, store: Store) -> str:
    ledger.cancel(job_id, "apiary")
    return "canceled"


def by_the_death_of_its_worker(job_id: str, ledger: Ledger, store: Store) -> str:
    assert taking.claim(ledger, job_id, lease_s=0.001) is not None
    wait_until(lambda: ledger.reap(max_attempts=1).failed)  # as a courier does
    return "failed"


@pytest.mark.parametrize(
    "end",
    [by_success, by_failure, by_a_cancellation_from_elsewhere, by_the_death_of_its_worker],
    ids=lambda end: end.__name__,
)
def test_a_job_that_is_awaited_is_answered_once_it_has_ended(
    door: Door, ledger: Ledger, store: Store, end: Callable[[str, Ledger, Store], str]
) -> None:
    with click(door) as answer:
        assert not answer.done()
        status = end(the_job(ledger), ledger, store)
        response = answer.result(20)

    seen = door.ask("GET", f"/v1/jobs/{the_job(ledger)}").json()
    assert (response.status_code, response.json()["status"]) == (200, status)
    assert response.json() == seen
    assert response.headers["Preference-Applied"] == "wait=30"
    assert response.headers["Location"] == seen["urls"]["self"]
    assert door.held() == 0


@pytest.mark.parametrize("door", [{"max_wait_s": "1"}], indirect=True)
def test_a_job_is_awaited_for_as_long_as_the_service_grants_and_goes_on(door: Door, ledger: Ledger) -> None:
    response = door.ask("POST", "/v1/jobs", body=job(), Prefer="wait=3600")

    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers["Preference-Applied"] == "wait=1"
    assert response.json()["id"] == the_job(ledger)
    assert door.ask("GET", f"/v1/jobs/{the_job(ledger)}").json()["status"] == "queued"


def test_without_the_preference_a_job_is_answered_at_once(apiary: Caller) -> None:
    for headers in ({}, {"Prefer": "wait=0"}, {"Prefer": "respond-async"}):
        response = apiary.send(job(), **headers)

        assert response.status_code == 202
        assert "Preference-Applied" not in response.headers


def test_a_client_that_hangs_up_gives_its_place_back_and_its_job_goes_on(door: Door, ledger: Ledger) -> None:
    body = f'{{"mode": "everything", "image": {{"base64": "{as_base64(a_picture())}"}}}}'
    connection = door.connect(
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEYS['apiary']}\r\nPrefer: wait=60\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    wait_until(lambda: door.held() == 1, 20)

    connection.close()

    wait_until(lambda: door.held() == 0, 20)
    assert ledger.status(the_job(ledger)) == "queued"


def test_a_job_sent_again_under_its_key_is_awaited_again(door: Door, ledger: Ledger, store: Store) -> None:
    with click(door, key="click-1") as first, click(door, key="click-1") as again:
        run_to_success(the_job(ledger), ledger, store)
        responses = [first.result(20), again.result(20)]
    later = door.ask("POST", "/v1/jobs", body=job(), **{"Prefer": "wait=30", "Idempotency-Key": "click-1"})
    other = door.ask(
        "POST",
        "/v1/jobs",
        body=job(mode="everything", metadata={"a": "b"}),
        **{"Prefer": "wait=30", "Idempotency-Key": "click-1"},
    )

    assert [response.status_code for response in (*responses, later)] == [200] * 3
    assert {response.json()["id"] for response in (*responses, later)} == {the_job(ledger)}
    assert ["Idempotency-Replayed" in response.headers for response in (*responses, later)] == [False, True, True]
    assert other.json()["code"] == "idempotency_key_reused"
    assert door.held() == 0


@pytest.mark.parametrize("door", [{"max_held_per_tenant": "1"}], indirect=True)
def test_a_job_that_cannot_be_awaited_is_refused_and_not_recorded(door: Door, ledger: Ledger) -> None:
    with click(door) as answer:
        first = the_job(ledger)

        refused = door.ask("POST", "/v1/jobs", body=job(), Prefer="wait=30")
        accepted = door.ask("POST", "/v1/jobs", body=job())
        ledger.cancel(first, "apiary")
        answer.result(20)

    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_held")
    assert int(refused.headers["Retry-After"]) > 0
    assert {record.id for record in ledger.page_of("apiary", limit=9).records} == {first, accepted.json()["id"]}


def test_a_wait_outlives_a_restart_of_redis(store_fields: dict[str, str], store: Store, tmp_path: Path) -> None:
    def start(port: int | None = None) -> Any:  # Any: a server
        with ports_in_turn():
            return start_redis(
                tmp_path / "data", log=tmp_path / "redis.log", port=port, options={"appendfsync": "always"}
            )

    server = start()
    try:
        with (
            open_door({**store_fields, "redis_url": server.url}, tmp_path, processes="1") as door,
            click(door) as answer,
        ):
            with connect(SharedSettings(redis_url=server.url)) as client:
                job_id = the_job(Ledger(client, 3600))
            server.stop()
            # The log says so once the wait has met it, or the connection that listens.
            wait_until(lambda: "queue_unavailable" in door.log.read_text(), 30)
            server = start(server.port)

            with connect(SharedSettings(redis_url=server.url)) as client:
                run_to_success(job_id, Ledger(client, 3600), store)
            response = answer.result(40)

        assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    finally:
        server.stop()


def test_a_job_whose_wait_ends_while_redis_is_away_is_answered_with_its_id(
    store_fields: dict[str, str], tmp_path: Path
) -> None:
    with ports_in_turn():
        server = start_redis(tmp_path / "data", log=tmp_path / "redis.log")
    try:
        fields = {**store_fields, "redis_url": server.url}
        with open_door(fields, tmp_path, processes="1", max_wait_s="4") as door, click(door) as answer:
            with connect(SharedSettings(redis_url=server.url)) as client:
                job_id = the_job(Ledger(client, 3600))
            server.stop()
            response = answer.result(40)
    finally:
        server.stop()

    assert (response.status_code, response.json()["id"], response.json()["status"]) == (202, job_id, "queued")


def test_what_a_body_takes_is_given_back_before_the_wait(make_settings: SettingsMaker, ledger: Ledger) -> None:
    """Otherwise a few clicks that wait would keep all others from sending theirs."""
    # Room for one such body: half of it is one tenant's.
    most = 400_000
    app = create_app(make_settings(max_bytes_under_way=most, max_body_bytes=most // 2))
    large = {"mode": "everything", "image": {"base64": as_base64(a_picture() + bytes(100_000))}}
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(Caller(app, KEYS["apiary"]).send, {**large, "metadata": {"n": str(n)}}, Prefer="wait=30")
            for n in range(4)
        ]
        records = wait_until(
            lambda: (found := ledger.page_of("apiary", limit=9).records) and len(found) == 4 and found, 30
        )
        for record in records:
            ledger.cancel(record.id, "apiary")

        assert [answer.result(20).status_code for answer in answers] == [200] * 4


def test_an_announcement_that_is_not_true_ends_no_wait(door: Door, ledger: Ledger, redis_client: redis.Redis) -> None:
    with click(door) as answer:
        job_id = the_job(ledger)
        for _ in range(20):
            redis_client.publish("mf:ended", job_id)
            door.ask("GET", f"/v1/jobs/{job_id}")

        ledger.cancel(job_id, "apiary")
        response = answer.result(20)

    assert (response.status_code, response.json()["status"]) == (200, "canceled")


# Who waits is woken.


def test_an_end_wakes_those_who_wait_for_it_and_no_others(ledger: Ledger, redis_url: str) -> None:
    def ask(job_ids: Sequence[str]) -> list[int | None]:
        return [1] * len(job_ids)  # a look finds no change

    with connect(SharedSettings(redis_url=redis_url)) as client:
        ends = Ends(client, linger_s=0.1)
        watch, started, woken = Watch(ask, ends), set[str](), set[str]()
        hold = Waits(ledger, lambda _: None, most=1, most_per_tenant=1).hold("apiary", lambda: None, None)
        names = [f"job {number}" for number in range(50)]

        def follow(name: str) -> None:
            with closing(watch.follow(name, hold, end_only=True)) as follower:
                started.add(name)
                while follower.wait(1, 60) is not None:
                    pass
                woken.add(name)

        following = [threading.Thread(target=follow, args=(name,)) for name in names]
        with closing(watch.follow("another", hold, end_only=True)):
            wait_until(lambda: ends.hears, 20)
            for thread in following:
                thread.start()
            wait_until(lambda: started == set(names), 20)
            client.publish("mf:ended", "job 7")
            wait_until(lambda: woken == {"job 7"}, 20)
            for name in names:
                client.publish("mf:ended", name)
            for thread in following:
                thread.join()

    assert woken == set(names)


def test_the_client_polls_where_no_more_responses_are_held(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    with open_door(shared_fields, tmp_path, processes="1", max_held_per_tenant="1") as door, click(door) as answer:
        first = the_job(ledger)
        with Client(door.url, KEYS["apiary"], max_tries=1) as client:
            job_view = client.submit(photo=a_picture(), mode="everything", held_s=30)
        ledger.cancel(first, "apiary")
        answer.result(20)

    assert job_view.status == "queued"
    assert job_view.id != first
