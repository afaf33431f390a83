"""Connections that are held, slow or many: none of them keeps others from the API."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
import requests
from flask.testing import FlaskClient

from maskfleet.api.app import create_app
from maskfleet.api.bytes_under_way import BytesUnderWay
from maskfleet.api.connections import Connections, Refused, client_network
from maskfleet.api.follow import AT_ONCE, Watch
from maskfleet.api.long_poll import Waits
from maskfleet.api.looks import Looks
from maskfleet.jobs.errors import ByteQuota, QueueUnavailable, TooManyBytes
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.jobs import Ledger
from tests.api.caller import Caller, a_closed_port, check_problem, claim, job
from tests.api.conftest import KEYS, SettingsMaker
from tests.api.door import Door, open_door
from tests.waiting import wait_until

#: Limits are those of each process; with one, a test knows which it meets.
ONE_PROCESS = {"processes": "1"}


@pytest.fixture
def door(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Door]:
    """The API in one process; a test may pass its own settings as the fixture's parameter."""
    with open_door(shared_fields, tmp_path, **{**ONE_PROCESS, **getattr(request, "param", {})}) as running:
        yield running


def a_job_of(door: Door, tenant: str = "apiary") -> str:
    response = door.ask("POST", "/v1/jobs", body=job(), Authorization=f"Bearer {KEYS[tenant]}")
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def answer(connection: socket.socket) -> tuple[int, str]:
    """Return the status and all else of the response to a raw request, or (0, "") for none."""
    with closing(connection):
        text = b""
        try:
            while data := connection.recv(65536):
                text += data
        except ConnectionResetError:
            pass
    found = re.match(rb"HTTP/1.1 ([0-9]{3}) ", text)
    return (int(found[1]) if found else 0), text.decode()


# Streams and waits.


@pytest.mark.parametrize("door", [{"max_held_per_tenant": "40"}], indirect=True)
def test_many_streams_of_one_tenant_refuse_no_other_tenants(door: Door) -> None:
    mine, other = a_job_of(door), a_job_of(door, "bakery")
    with ExitStack() as streams:
        for _ in range(40):
            streams.enter_context(closing(door.hold(mine)))
        wait_until(lambda: door.held() == 40, 20)

        refused = door.ask("GET", f"/v1/jobs/{mine}/events")
        streams.enter_context(closing(door.hold(other, key=KEYS["bakery"])))
        wait_until(lambda: door.held() == 41, 20)

        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_held")
        assert int(refused.headers["Retry-After"]) > 0
        assert door.ask("GET", f"/v1/jobs/{mine}").status_code == 200

    wait_until(lambda: door.held() == 0, 20)


def test_a_wait_whose_client_hung_up_is_over(door: Door) -> None:
    job_id = a_job_of(door)
    waiting = [door.hold(job_id, wait="60") for _ in range(20)]
    wait_until(lambda: door.held() == 20, 20)

    for connection in waiting:
        connection.close()

    wait_until(lambda: door.held() == 0, 20)


def test_a_wait_goes_on_beside_a_request_that_was_sent_after_it(door: Door, ledger: Ledger) -> None:
    job_id = a_job_of(door)
    connection = door.hold(job_id, wait="30")
    wait_until(lambda: door.held() == 1, 20)

    connection.sendall(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert door.held() == 1
    ledger.cancel(job_id, "apiary")

    status, text = answer(connection)
    assert (status, text.count("HTTP/1.1 200")) == (200, 2)
    assert text.index('"canceled"') < text.index('"live"')


@pytest.mark.parametrize("route", ["stream", "wait"])
def test_what_is_held_ends_when_its_key_is_revoked(door: Door, key_store: KeyStore, route: str) -> None:
    key, text = key_store.create("apiary", [Scope.READ])
    job_id = a_job_of(door)
    connection = door.hold(job_id, wait="60" if route == "wait" else "", key=text.get_secret_value())
    wait_until(lambda: door.held() == 1, 20)

    key_store.revoke(key.id)

    # Five seconds by the documents; here the machine is shared.
    wait_until(lambda: door.held() == 0, 15)
    connection.settimeout(1)
    assert (b" 401 " in connection.recv(65536)) == (route == "wait")
    connection.close()


@pytest.mark.parametrize("door", [{"max_held_per_tenant": "200"}], indirect=True)
def test_many_streams_are_looked_after_by_few_commands(door: Door, ledger: Ledger, redis_client: redis.Redis) -> None:
    def calls(command: str) -> int:
        return int(redis_client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    job_ids = [a_job_of(door) for _ in range(20)]
    for job_id in job_ids:
        claim(job_id, ledger)  # a job that waits has its place looked at as well
    with ExitStack() as streams:
        for number in range(120):
            streams.enter_context(closing(door.hold(job_ids[number % 20])))
        wait_until(lambda: door.held() == 120, 20)
        redis_client.config_resetstat()

        wait_until(lambda: calls("hget") >= 600, 40)  # each script looks at several jobs

        assert 0 < calls("evalsha") <= 600 / 3
    wait_until(lambda: door.held() == 0, 20)


def test_a_look_serves_all_whose_jobs_are_due_and_wakes_those_whose_job_has_changed(ledger: Ledger) -> None:
    versions, asked = {f"job {n}": 1 for n in range(150)}, list[int]()

    def ask(job_ids: Sequence[str]) -> list[int | None]:
        asked.append(len(job_ids))
        return [versions.get(job_id) for job_id in job_ids]

    watch, woken = Watch(ask), dict[str, int | None]()
    client = Waits(ledger, lambda _: None, most=1, most_per_tenant=1).hold("apiary", lambda: None, None)

    def follow(job_id: str) -> None:
        with closing(watch.follow(job_id, client)) as follower:
            while (version := follower.wait(1, 60)) == 1:
                pass
            woken[job_id] = version

    following = [threading.Thread(target=follow, args=(job_id,)) for job_id in versions]
    for thread in following:
        thread.start()
    wait_until(lambda: sum(asked) > 10 * len(versions), 30)
    assert woken == {}

    versions["job 7"] = 2
    wait_until(lambda: woken == {"job 7": 2}, 20)
    del versions["job 8"]
    wait_until(lambda: woken == {"job 7": 2, "job 8": None}, 20)
    versions.update(dict.fromkeys(versions, 3))

    for thread in following:
        thread.join()
    assert woken == {**versions, "job 7": 2, "job 8": None}
    assert max(asked) <= AT_ONCE
    assert len(asked) < sum(asked) / 5


def test_those_who_follow_learn_that_nobody_answers(ledger: Ledger) -> None:
    def ask(job_ids: Sequence[str]) -> list[int | None]:
        raise QueueUnavailable

    watch = Watch(ask)
    client = Waits(ledger, lambda _: None, most=1, most_per_tenant=1).hold("apiary", lambda: None, None)

    for _ in range(2):
        with closing(watch.follow("a job", client)) as follower, pytest.raises(QueueUnavailable):
            follower.wait(1, 60)


def test_those_who_ask_together_get_each_their_answer() -> None:
    asked: list[int] = []

    def ask(job_ids: Sequence[str]) -> list[str]:
        asked.append(len(job_ids))
        return [f"answer to {job_id}" for job_id in job_ids]

    looks = Looks(ask, lambda: 0.3)
    answers: dict[str, str] = {}
    asking = [
        threading.Thread(target=lambda name=f"{n % 5}": answers.update({name: looks.of(name)})) for n in range(20)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()

    assert answers == {f"{n}": f"answer to {n}" for n in range(5)}
    assert len(asked) < 20


def test_those_who_ask_together_learn_together_that_nobody_answers() -> None:
    def ask(job_ids: Sequence[str]) -> list[str]:
        raise QueueUnavailable

    looks = Looks(ask, lambda: 0.0)

    for _ in range(2):
        with pytest.raises(QueueUnavailable):
            looks.of("a job")


# Slow heads and bodies.


@pytest.mark.parametrize("door", [{"head_timeout_s": "3", "max_connections_per_address": "0"}], indirect=True)
def test_heads_that_never_end_keep_nobody_from_posting_and_are_ended(door: Door) -> None:
    heads = [door.connect("GET /live HTTP/1.1\r\nX-Slow: ") for _ in range(300)]
    silent = [door.connect("") for _ in range(20)]

    assert a_job_of(door)
    assert door.ask("GET", "/live", timeout=10).status_code == 200
    assert {answer(connection)[0] for connection in heads} == {408}
    assert {answer(connection) for connection in silent} == {(0, "")}


@pytest.mark.parametrize("door", [{"head_timeout_s": "3"}], indirect=True)
def test_a_head_that_comes_byte_by_byte_has_no_more_time(door: Door) -> None:
    connection = door.connect("GET /live HTTP/1.1\r\nX-Slow: ")
    ended = threading.Event()

    def trickle() -> None:
        while not ended.wait(0.2):
            try:
                connection.sendall(b"x")
            except OSError:
                return

    sending = threading.Thread(target=trickle)
    sending.start()
    try:
        assert answer(connection)[0] in (408, 0)  # 0: reset, since it went on sending
    finally:
        ended.set()
        sending.join()


@pytest.mark.parametrize("door", [{"body_timeout_s": "2"}], indirect=True)
def test_bodies_that_never_end_keep_nobody_from_posting_and_are_refused(door: Door) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEYS['apiary']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    bodies = [door.connect(head) for _ in range(100)]

    assert a_job_of(door)
    assert door.ask("GET", "/live", timeout=10).status_code == 200
    answers = [answer(connection) for connection in bodies]
    assert {status for status, _ in answers} == {408}
    assert all('"body_too_slow"' in text and "Connection: close" in text for _, text in answers)


def test_the_body_of_a_request_without_a_key_is_not_awaited(door: Door) -> None:
    bodies = [
        door.connect("POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{") for _ in range(50)
    ]

    assert {answer(connection)[0] for connection in bodies} <= {401, 429}


def test_a_body_that_is_slow_but_steady_is_taken(door: Door) -> None:
    body = json.dumps(job()).encode()
    connection = door.connect(
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEYS['apiary']}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    for part in range(0, len(body), 20):
        connection.sendall(body[part : part + 20])

    assert answer(connection)[0] == 202


# Limits on connections.


@pytest.mark.parametrize("door", [{"max_connections_per_address": "30"}], indirect=True)
def test_an_address_has_so_many_connections_and_is_told_so(door: Door) -> None:
    with ExitStack() as held:
        for _ in range(30):
            held.enter_context(closing(door.connect("GET ")))
        status, text = wait_until(lambda: _refusal(door), 20)

    assert status == 429
    assert '"too_many_connections"' in text
    assert "Retry-After: " in text
    wait_until(lambda: door.ask("GET", "/live").status_code == 200)


def _refusal(door: Door) -> tuple[int, str] | None:
    found = answer(door.connect("GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
    return found if found[0] == 429 else None


@pytest.mark.parametrize("door", [{"max_connections_per_address": "3", "trusted_proxies": "1"}], indirect=True)
def test_behind_a_proxy_all_may_come_from_one_address(door: Door) -> None:
    with ExitStack() as held:
        for _ in range(30):
            held.enter_context(closing(door.connect("GET ")))

        assert door.ask("GET", "/live").status_code == 200


@pytest.mark.parametrize("door", [{"max_connections": "16", "max_connections_per_address": "0"}], indirect=True)
def test_when_all_places_are_taken_the_idlest_makes_room(door: Door) -> None:
    job_id = a_job_of(door)
    with closing(door.hold(job_id)):
        wait_until(lambda: door.held() == 1, 20)
        with ExitStack() as held:
            for _ in range(60):
                held.enter_context(closing(door.connect("GET ")))

            assert a_job_of(door)
            assert door.held() == 1


def test_a_connection_that_serves_a_request_makes_room_for_none() -> None:
    connections = Connections(most=2, most_per_address=0)
    ends = [socket.socketpair() for _ in range(3)]
    first, second = (connections.enter(ends[n][0], ("192.0.2.1", n)) for n in range(2))
    assert connections.serve(first)
    assert connections.serve(second)

    with pytest.raises(Refused, match="too_many_connections"):
        connections.enter(ends[2][0], ("192.0.2.2", 1))
    connections.wait(second)
    third = connections.enter(ends[2][0], ("192.0.2.2", 1))

    assert len(connections) == 2
    assert ends[1][1].recv(1) == b""
    assert not connections.serve(second)
    for connection in (first, second, third, third):
        connections.leave(connection)
    assert len(connections) == 0
    for pair in ends:
        for end in pair:
            end.close()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("/run/api.sock", ""),
    ],
)
def test_an_ipv6_address_counts_by_its_network(address: str, network: str) -> None:
    assert client_network(address) == network


# Large bodies.


def test_bodies_wait_for_room_and_are_refused_when_none_comes() -> None:
    room = BytesUnderWay(300_000, 200_000, patience_s=0.2)
    held = room.take("apiary", 150_000)

    with pytest.raises(ByteQuota, match="200,000"):
        room.take("apiary", 100_000)
    other = room.take("bakery", 150_000)
    with pytest.raises(TooManyBytes):
        room.take("cidery", 100_000)
    assert room.take("apiary", 1000) == 0  # small ones are not counted

    room.give_back("bakery", other)
    assert room.take("cidery", 100_000) == 100_000
    room.give_back("apiary", held)
    room.give_back("cidery", 100_000)
    assert room.take("apiary", 200_000) == 200_000


def test_a_body_that_waits_is_taken_as_soon_as_there_is_room() -> None:
    room = BytesUnderWay(100_000, 100_000, patience_s=30)
    held, taken = room.take("apiary", 100_000), threading.Event()

    def take() -> None:
        room.take("apiary", 90_000)
        taken.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    room.give_back("apiary", held)

    assert taken.wait(10)
    waiting.join()


def test_room_is_given_back_whatever_becomes_of_the_request(make_settings: SettingsMaker, ledger: Ledger) -> None:
    caller = Caller(create_app(make_settings(max_body_bytes=100_000, max_bytes_under_way=100_000)), KEYS["apiary"])

    for _ in range(3):
        check_problem(caller.post_bytes("/v1/jobs", b"{" * 90_000), 400, "malformed_json")
        check_problem(caller.post_bytes("/v1/jobs", b"{" * 200_000), 413, "body_too_large")
        assert caller.post_bytes("/v1/batches", b"[" * 90_000).status_code == 400


@pytest.mark.parametrize(
    "door", [{"max_body_bytes": str(6 * 2**20), "max_bytes_under_way": str(12 * 2**20)}], indirect=True
)
def test_large_bodies_of_one_tenant_take_turns_and_others_pass(door: Door) -> None:
    body = json.dumps({"mode": "everything", "image": {"base64": "AAAA" * 1_400_000}})
    statuses: list[int] = []

    def send() -> None:
        headers = {"Authorization": f"Bearer {KEYS['apiary']}", "Content-Type": "application/json"}
        statuses.append(requests.post(f"{door.url}/v1/jobs", data=body, headers=headers, timeout=60).status_code)

    sending = [threading.Thread(target=send) for _ in range(8)]
    for thread in sending:
        thread.start()
    assert a_job_of(door, "bakery")
    for thread in sending:
        thread.join()

    assert set(statuses) <= {422, 429}  # it is no image; 429 on a machine that takes more than ten seconds
    assert 422 in statuses


def test_a_small_request_has_a_small_body(apiary: Caller) -> None:
    check_problem(apiary.post_bytes("/v1/uploads", b"{" * 300_000), 413, "body_too_large")


# What anyone may ask for.


def test_the_openapi_document_is_made_once_and_kept_by_clients(client: FlaskClient) -> None:
    first = client.get("/openapi.json")
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status_code, again.data) == (304, b"")
    assert first.headers["Cache-Control"] == "no-cache"
    assert client.get("/openapi.json").data == first.data


def test_health_is_looked_at_once_in_a_while(
    make_settings: SettingsMaker, redis_client: redis.Redis, client: FlaskClient
) -> None:
    app = create_app(make_settings(health_cache_s=3600))
    caller = Caller(app, KEYS["apiary"])

    def pings() -> int:
        return int(redis_client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0))

    assert caller.get("/ready").status_code == 200
    before = pings()
    statuses = {caller.get("/ready").status_code for _ in range(20)}
    figures = {caller.get("/metrics").text for _ in range(3)}

    assert (statuses, pings(), len(figures)) == ({200}, before, 1)


def test_an_outage_is_looked_at_once_in_a_while_too(make_settings: SettingsMaker) -> None:
    settings = make_settings(health_cache_s=3600, redis_url=f"redis://127.0.0.1:{a_closed_port()}/0")
    caller = Caller(create_app(settings), KEYS["apiary"])

    for _ in range(3):
        check_problem(caller.get("/ready"), 503, "queue_unavailable")


def test_metrics_need_an_operators_key(client: FlaskClient, key_store: KeyStore, apiary: Caller) -> None:
    _, writing = key_store.create("apiary", [Scope.READ, Scope.WRITE])

    check_problem(client.get("/metrics"), 401, "no_api_key")
    check_problem(Caller(apiary.app, writing.get_secret_value()).get("/metrics"), 403, "missing_scope")
    assert apiary.get("/metrics").status_code == 200


def test_metrics_have_a_port_of_their_own_which_serves_nothing_else(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    port = a_closed_port()
    with open_door(shared_fields, tmp_path, **ONE_PROCESS, metrics_bind=f"127.0.0.1:{port}") as door:

        def status(path: str, at: int, **headers: str) -> int:
            return requests.get(f"http://127.0.0.1:{at}{path}", headers=headers, timeout=10).status_code

        assert [status(path, port) for path in ("/metrics", "/live", "/ready")] == [200, 200, 200]
        assert [status(path, port) for path in ("/v1/jobs", "/openapi.json", "/docs", "/nowhere")] == [404] * 4
        assert status("/metrics", port, Host="10.1.2.3") == 200
        assert status("/metrics", door.port) == 401
        assert status("/metrics", door.port, Host=f"127.0.0.1:{port}") == 401


# The folder with the metrics.


def test_requests_are_served_while_the_metrics_folder_is_gone(door: Door) -> None:
    (folder,) = door.figures.glob("maskfleet-api-*")
    (process,) = _processes(door)
    folder.rename(door.figures / "tidied-away")

    assert door.ask("GET", "/metrics").status_code == 200
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: _processes(door) not in ([], [process]) and _answers(door), 30)

    assert a_job_of(door)
    assert door.ask("GET", "/live").status_code == 200
    assert 'route="/live"' in door.ask("GET", "/metrics").text
    assert "maskfleet_ledger_up 1.0" in door.ask("GET", "/metrics").text
    assert folder.is_dir()


def _processes(door: Door) -> list[int]:
    children = Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def _answers(door: Door) -> bool:
    try:
        return door.ask("GET", "/live", timeout=5).ok
    except requests.RequestException:
        return False


def test_the_folder_of_an_api_that_was_killed_is_removed_by_the_next_one_and_no_other(
    shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    with open_door(shared_fields, tmp_path, **ONE_PROCESS) as door:
        killed = set(tmp_path.glob("maskfleet-api-*"))
        children = _processes(door)
        door.process.kill()
        door.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 30)
    assert len(killed) == 1

    with (
        open_door(shared_fields, tmp_path, **ONE_PROCESS) as living,
        open_door(shared_fields, tmp_path, **ONE_PROCESS) as other,
    ):
        left = set(tmp_path.glob("maskfleet-api-*"))

        assert not killed & left
        assert len(left) == 2
        assert all(door.ask("GET", "/metrics").status_code == 200 for door in (living, other))


def test_the_setting_that_is_gone_is_named(shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path) -> None:
    with open_door(shared_fields, tmp_path, **ONE_PROCESS, threads="32") as door:
        lines = [json.loads(line) for line in door.log.read_text().splitlines()]

    assert [line["setting"] for line in lines if line["event"] == "setting_not_used"] == ["threads"]
