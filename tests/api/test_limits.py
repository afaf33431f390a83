"""Limits on a caller: request rate, jobs in flight, backlog, upload size."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import redis
import requests
from flask import Flask
from pydantic import ValidationError
from structlog.testing import capture_logs

from maskfleet import Client
from maskfleet.api.app import create_app
from maskfleet.api.limits import REST_S
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.storage import Store, attempt_prefix, upload_key
from tests.api.caller import Caller, a_closed_port, as_base64, check_problem, job, run_to_success
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.api.pictures import a_picture
from tests.maskfleet.scripted_server import Answer, ScriptedServer
from tests.waiting import wait_until

UNKNOWN_JOB = "/v1/jobs/job_" + "0" * 32


@pytest.fixture
def limited(make_settings: SettingsMaker, redis_client: redis.Redis) -> Flask:
    """The app with low limits."""
    return create_app(make_settings(rate_limit="3/minute", anonymous_rate_limit="2/minute"))


# Request rate.


def test_a_key_over_its_limit_is_told_when_to_come_again(limited: Flask) -> None:
    apiary = Caller(limited, KEYS["apiary"])

    responses = [apiary.get("/v1/jobs") for _ in range(3)]
    refused = apiary.get("/v1/jobs")

    assert [response.status_code for response in responses] == [200, 200, 200]
    assert [response.headers["RateLimit-Remaining"] for response in responses] == ["2", "1", "0"]
    assert {response.headers["RateLimit-Limit"] for response in responses} == {"3"}
    assert all(1 <= int(response.headers["RateLimit-Reset"]) <= 60 for response in responses)
    assert all("Retry-After" not in response.headers for response in responses)
    check_problem(refused, 429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit-Remaining"] == "0"


def test_each_key_is_counted_by_itself_over_all_routes_and_processes(
    limited: Flask, make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    _, second = KeyStore(redis_client).create("apiary", [Scope.READ])
    other_process = create_app(make_settings(rate_limit="3/minute"))

    assert Caller(limited, KEYS["apiary"]).get("/v1/jobs").status_code == 200
    assert Caller(limited, KEYS["apiary"]).send(job()).status_code == 202
    assert Caller(other_process, KEYS["apiary"]).get("/v1/models").status_code == 200

    check_problem(Caller(other_process, KEYS["apiary"]).get("/v1/jobs"), 429, "rate_limited")
    assert Caller(limited, second.get_secret_value()).get("/v1/jobs").status_code == 200
    assert Caller(limited, KEYS["bakery"]).get("/v1/jobs").status_code == 200


def test_who_guesses_keys_is_slowed_and_those_with_a_key_are_not(limited: Flask) -> None:
    for _ in range(2):
        check_problem(Caller(limited, "guess").get("/v1/jobs"), 401, "unknown_api_key")

    check_problem(Caller(limited, "guess").get("/v1/jobs"), 429, "rate_limited")
    check_problem(limited.test_client().get("/v1/jobs"), 429, "rate_limited")
    assert Caller(limited, KEYS["apiary"]).get("/v1/jobs").status_code == 200


def test_a_request_without_the_scope_counts(limited: Flask, redis_client: redis.Redis) -> None:
    _, reading = KeyStore(redis_client).create("apiary", [Scope.READ])
    caller = Caller(limited, reading.get_secret_value())

    statuses = [caller.post(f"{UNKNOWN_JOB}/cancel").status_code for _ in range(4)]

    assert statuses == [403, 403, 403, 429]


def test_health_and_docs_are_not_limited(limited: Flask) -> None:
    client = limited.test_client()

    for path in ("/live", "/ready", "/openapi.json", "/docs"):
        for _ in range(5):
            response = client.get(path)
            assert response.status_code == 200
            assert "RateLimit-Limit" not in response.headers


def _guess_from(app: Flask, address: str, **headers: str) -> int:
    client = app.test_client()
    return client.get("/v1/jobs", headers=headers, environ_overrides={"REMOTE_ADDR": address}).status_code


def test_addresses_are_told_apart_and_ipv6_by_its_network(limited: Flask) -> None:
    assert [_guess_from(limited, "192.0.2.1") for _ in range(3)] == [401, 401, 429]
    assert _guess_from(limited, "192.0.2.2") == 401
    assert [_guess_from(limited, f"2001:db8::{host}") for host in (1, 2, 3)] == [401, 401, 429]
    assert _guess_from(limited, "2001:db8:0:1::1") == 401


def test_an_address_is_taken_from_a_header_only_behind_a_proxy_that_is_trusted(
    limited: Flask, make_settings: SettingsMaker
) -> None:
    behind = create_app(make_settings(anonymous_rate_limit="2/minute", trusted_proxies=1))

    made_up = [_guess_from(limited, "192.0.2.1", **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(3)]
    told = [_guess_from(behind, "10.0.0.1", **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(3)]
    spoofed = [_guess_from(behind, "10.0.0.1", **{"X-Forwarded-For": f"10.1.1.{n}, 203.0.113.9"}) for n in range(3)]

    assert made_up == [401, 401, 429]
    assert told == [401, 401, 401]
    assert spoofed == [401, 401, 429]


def test_without_redis_nothing_is_limited_and_the_ledger_says_what_is_wrong(make_settings: SettingsMaker) -> None:
    away = make_settings(redis_url=f"redis://127.0.0.1:{a_closed_port()}/0", rate_limit="1/minute")
    caller = Caller(create_app(away), KEYS["apiary"])

    with capture_logs() as lines:
        responses = [caller.get(UNKNOWN_JOB) for _ in range(3)]

    for response in responses:
        check_problem(response, 503, "queue_unavailable")
        assert "RateLimit-Limit" not in response.headers
    # Redis is retried once in a while, not with each request.
    assert [line["log_level"] for line in lines if line["event"] == "rate_limit_not_counted"] == ["warning"]


def test_with_a_full_redis_nothing_is_limited_until_there_is_room(limited: Flask, redis_client: redis.Redis) -> None:
    apiary = Caller(limited, KEYS["apiary"])
    redis_client.config_set("maxmemory", 1)
    try:
        statuses = [apiary.get("/v1/jobs").status_code for _ in range(5)]
    finally:
        redis_client.config_set("maxmemory", 0)

    assert statuses == [200] * 5
    wait_until(lambda: "RateLimit-Limit" in apiary.get("/v1/jobs").headers, REST_S + 5)


def test_the_counters_are_forgotten_by_themselves(limited: Flask, redis_client: redis.Redis) -> None:
    Caller(limited, KEYS["apiary"]).get("/v1/jobs")

    keys = redis_client.keys("mf:limits*")

    assert keys
    assert all(0 < redis_client.ttl(key) <= 120 for key in keys)
    assert KEYS["apiary"] not in repr(keys)


@pytest.mark.parametrize("limit", ["600", "0/minute", "600/fortnight", "many", "600/minute;"])
def test_a_limit_that_cannot_be_read_stops_the_start(make_settings: SettingsMaker, limit: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(rate_limit=limit)


def test_the_client_comes_again_when_it_is_told_to() -> None:
    slower = Answer(429, b"{}", {"Retry-After": "1"})
    with ScriptedServer(slower, Answer(200, b'{"models": []}')) as server, Client(server.url, "key") as client:
        began = time.monotonic()

        assert client.models() == ()

        assert time.monotonic() - began >= 1
        assert len(server.asked) == 2


# Jobs in flight.


def test_a_tenant_may_have_a_quota_of_its_own(make_settings: SettingsMaker, redis_client: redis.Redis) -> None:
    app = create_app(make_settings(max_jobs_in_flight=2, tenant_jobs_in_flight="bakery:1, dairy:5"))
    apiary, bakery = Caller(app, KEYS["apiary"]), Caller(app, KEYS["bakery"])

    first = bakery.a_job()
    check_problem(bakery.send(job()), 429, "too_many_jobs_in_flight")
    apiary.a_job()
    apiary.a_job()
    check_problem(apiary.send(job()), 429, "too_many_jobs_in_flight")

    bakery.post(f"/v1/jobs/{first}/cancel")
    assert bakery.send(job()).status_code == 202


@pytest.mark.parametrize("quotas", ["bakery", "bakery:", "bakery:none", "bakery:0"])
def test_a_quota_that_cannot_be_read_stops_the_start(make_settings: SettingsMaker, quotas: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(tenant_jobs_in_flight=quotas)


# Backlog.


@pytest.fixture
def patient(make_settings: SettingsMaker, redis_client: redis.Redis, worker_registry: WorkerRegistry) -> Caller:
    """A tenant of a service with one worker, 10 s per job, where no job may wait longer than 25 s."""
    worker_registry.announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))
    for priority in Priority:
        redis_client.hset("mf:totals", f"pace:{queue_name(MODEL, priority)}", "10000")
    return Caller(create_app(make_settings(max_backlog_s=25)), KEYS["apiary"])


def test_a_job_that_would_wait_too_long_is_refused_until_the_queue_is_shorter(patient: Caller, ledger: Ledger) -> None:
    waiting = [patient.a_job() for _ in range(3)]  # with 0, 10 and 20 s ahead of them

    refused = patient.send(job())

    problem = check_problem(refused, 503, "backlog_full")
    assert "30 s" in problem.detail
    assert refused.headers["Retry-After"] == "5"
    assert len(ledger.page_of("apiary", limit=10).records) == 3
    patient.post(f"/v1/jobs/{waiting[0]}/cancel")
    assert patient.send(job()).status_code == 202


def test_an_urgent_job_waits_for_urgent_ones_only(patient: Caller) -> None:
    for _ in range(3):
        patient.a_job(priority="bulk")
    check_problem(patient.send(job(priority="bulk")), 503, "backlog_full")

    for _ in range(3):
        patient.a_job(priority="interactive")

    check_problem(patient.send(job(priority="interactive")), 503, "backlog_full")
    # Urgent jobs are taken first.
    check_problem(patient.send(job(priority="normal")), 503, "backlog_full")


def test_more_workers_take_in_more(patient: Caller, worker_registry: WorkerRegistry) -> None:
    for _ in range(3):
        patient.a_job()
    check_problem(patient.send(job()), 503, "backlog_full")

    worker_registry.announce(WorkerSeen("node-1", MODEL, "cpu", 2, 0))

    assert patient.send(job()).status_code == 202


def test_a_job_that_is_known_by_its_key_is_given_however_long_the_queue_is(patient: Caller) -> None:
    first = patient.send(job(), Idempotency_Key="order-42")
    for _ in range(2):
        patient.a_job()
    check_problem(patient.send(job()), 503, "backlog_full")

    again = patient.send(job(), Idempotency_Key="order-42")

    assert again.status_code == 202
    assert again.json["id"] == first.json["id"]


def test_without_a_measure_or_a_worker_nothing_is_refused(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    caller = Caller(create_app(make_settings(max_backlog_s=1)), KEYS["apiary"])

    assert [caller.send(job()).status_code for _ in range(3)] == [202] * 3
    redis_client.hset("mf:totals", f"pace:{queue_name(MODEL, Priority.NORMAL)}", "10000")
    assert caller.send(job()).status_code == 202


# Uploads and results.


def _presigned(caller: Caller, size: int = 10, content_type: str = "image/jpeg") -> dict[str, dict[str, str]]:
    response = caller.post("/v1/uploads", {"content_type": content_type, "size": size})
    assert response.status_code == 201
    return response.json


def test_a_link_takes_one_object_of_the_declared_size_and_type_once(apiary: Caller, store: Store) -> None:
    shown = _presigned(apiary)
    url, headers = str(shown["url"]), shown["headers"]
    key = upload_key("apiary", str(shown["upload_id"]))

    def put(data: object, to: str = url, **changes: str) -> int:
        return requests.put(to, data=data, headers={**headers, **changes}, timeout=10).status_code

    refused = {
        "longer": put(bytes(11), **{"Content-Length": "11"}),
        "shorter": put(bytes(9), **{"Content-Length": "9"}),
        "of another type": put(bytes(10), **{"Content-Type": "text/html"}),
        "of no declared length": requests.put(
            url, data=iter([bytes(4096)]), headers={"Content-Type": "image/jpeg", "If-None-Match": "*"}, timeout=10
        ).status_code,
        "to another key": put(bytes(10), url.replace("upl_", "upl_0", 1)),
        "to another tenant": put(bytes(10), url.replace("/apiary/", "/bakery/", 1)),
        "over an older object": put(bytes(10), **{"If-None-Match": ""}),
    }
    assert refused == dict.fromkeys(refused, 403)
    assert store.head(key) is None

    assert put(b"0123456789") == 200
    assert put(b"9876543210") == 412
    assert store.read(key) == b"0123456789"


# Nothing is stored of what is refused.


def _uploads_of(tenant: str, store: Store) -> list[str]:
    return [found.key for found in store.listed(f"uploads/{tenant}/")]


@pytest.fixture
def tenant() -> str:
    """A tenant that has stored nothing yet."""
    return f"new-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def newcomer(tenant: str, make_settings: SettingsMaker, ledger: Ledger) -> Callable[..., Caller]:
    """Makes a caller of that tenant, of a service with other settings."""
    return lambda **changes: Caller(create_app(make_settings(api_keys=f"{tenant}:its-key", **changes)), "its-key")


def _pictures(count: int) -> list[bytes]:
    return [a_picture((20 + number, 20)) for number in range(count)]


def test_a_refused_job_leaves_no_image_behind(newcomer: Callable[..., Caller], tenant: str, store: Store) -> None:
    caller = newcomer(max_jobs_in_flight=1)
    first, *more = _pictures(21)
    assert caller.send(job(image={"base64": as_base64(first)})).status_code == 202
    stored = _uploads_of(tenant, store)

    for picture in more:
        check_problem(caller.send(job(image={"base64": as_base64(picture)})), 429, "too_many_jobs_in_flight")
    parts = [("job", '{"mode": "everything"}'), ("image", (more[0], "bee.png", "image/png"))]
    check_problem(caller.post_parts(parts), 429, "too_many_jobs_in_flight")
    batch = {"mode": "everything", "images": [{"base64": as_base64(picture)} for picture in more]}
    check_problem(caller.post("/v1/batches", batch), 429, "too_many_jobs_in_flight")

    assert len(stored) == 1
    assert _uploads_of(tenant, store) == stored


def test_of_jobs_sent_at_once_only_those_that_are_accepted_leave_an_image(
    newcomer: Callable[..., Caller], tenant: str, store: Store, redis_client: redis.Redis
) -> None:
    caller = newcomer(max_jobs_in_flight=3)
    bodies = [job(image={"base64": as_base64(picture)}) for picture in _pictures(24)]

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(response.status_code for response in pool.map(caller.send, bodies))

    accepted = statuses.count(202)
    assert statuses == [202] * accepted + [429] * (24 - accepted)
    assert 1 <= accepted <= 3
    assert len(_uploads_of(tenant, store)) == accepted
    assert [field for field in redis_client.hkeys(f"mf:bytes:{tenant}") if field.startswith("reserved:")] == []


def test_a_full_backlog_leaves_no_image_behind(
    newcomer: Callable[..., Caller], tenant: str, store: Store, redis_client: redis.Redis
) -> None:
    caller = newcomer(max_backlog_s=1)
    queue = queue_name(MODEL, Priority.NORMAL)
    WorkerRegistry(redis_client).announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))
    redis_client.hset("mf:totals", f"pace:{queue}", "60000")
    first, second = _pictures(2)
    assert caller.send(job(image={"base64": as_base64(first)})).status_code == 202

    check_problem(caller.send(job(image={"base64": as_base64(second)})), 503, "backlog_full")

    assert len(_uploads_of(tenant, store)) == 1


def test_a_tenant_stores_no_more_bytes_than_its_quota(
    newcomer: Callable[..., Caller], tenant: str, store: Store
) -> None:
    first, second, third = (picture + bytes(1000 - len(picture)) for picture in _pictures(3))
    caller = newcomer(max_upload_bytes=2500)
    bodies = [job(image={"base64": as_base64(picture)}) for picture in (first, second, third)]
    assert [caller.send(body).status_code for body in bodies[:2]] == [202, 202]

    refused = caller.send(bodies[2])

    problem = check_problem(refused, 429, "too_many_upload_bytes")
    assert "2,500 bytes" in problem.detail
    assert refused.headers["Retry-After"] == "3600"
    size = {"content_type": "image/png", "size": 501}
    check_problem(caller.post("/v1/uploads", size), 429, "too_many_upload_bytes")
    assert caller.post("/v1/uploads", {**size, "size": 500}).status_code == 201
    assert len(_uploads_of(tenant, store)) == 2
    assert caller.send(job(image={"url": "https://example.com/bee.jpg"})).status_code == 202
    assert newcomer(max_upload_bytes=2500, tenant_upload_bytes=f"{tenant}:9000").send(bodies[2]).status_code == 202


def test_bytes_are_counted_for_as_long_as_the_bucket_keeps_them(
    newcomer: Callable[..., Caller], tenant: str, redis_client: redis.Redis
) -> None:
    caller = newcomer(max_upload_bytes=1000, upload_window_s=7200)
    size = {"content_type": "image/png", "size": 600}
    assert caller.post("/v1/uploads", size).status_code == 201
    check_problem(caller.post("/v1/uploads", size), 429, "too_many_upload_bytes")
    key = f"mf:stored:{tenant}"
    ((hour, stored),) = redis_client.zrange(key, 0, -1, withscores=True)

    redis_client.delete(key)
    redis_client.zadd(key, {str(int(hour) - 1): stored})
    check_problem(caller.post("/v1/uploads", size), 429, "too_many_upload_bytes")
    redis_client.delete(key)
    redis_client.zadd(key, {str(int(hour) - 2): stored})

    assert caller.post("/v1/uploads", size).status_code == 201
    assert redis_client.zcard(key) == 1
    assert 0 < redis_client.ttl(key) <= 7200


def test_no_link_to_upload_is_given_to_a_tenant_with_as_many_jobs_as_allowed(newcomer: Callable[..., Caller]) -> None:
    caller = newcomer(max_jobs_in_flight=1)
    assert caller.send(job()).status_code == 202

    refused = caller.post("/v1/uploads", {"content_type": "image/png", "size": 10})

    check_problem(refused, 429, "too_many_jobs_in_flight")


def test_a_repeated_request_is_answered_as_before_though_the_quota_is_full(newcomer: Callable[..., Caller]) -> None:
    caller = newcomer(max_jobs_in_flight=1, max_upload_bytes=len(a_picture()))
    batch = {"mode": "everything", "images": [job()["image"]]}

    first, second = (caller.send(job(), Idempotency_Key="a") for _ in range(2))

    assert (first.status_code, second.json["id"]) == (202, first.json["id"])
    check_problem(caller.send(job(run_timeout_s=5), Idempotency_Key="a"), 422, "idempotency_key_reused")
    check_problem(caller.post("/v1/batches", batch), 429, "too_many_jobs_in_flight")


def test_places_are_given_back_when_the_store_is_down(
    newcomer: Callable[..., Caller], tenant: str, redis_client: redis.Redis
) -> None:
    caller = newcomer(max_jobs_in_flight=1, s3_endpoint=f"http://127.0.0.1:{a_closed_port()}")

    check_problem(caller.send(job()), 503, "store_unavailable")

    assert redis_client.exists(f"mf:bytes:{tenant}", f"mf:stored:{tenant}") == 0
    assert newcomer(max_jobs_in_flight=1).send(job()).status_code == 202


def test_the_link_of_an_upload_ends_after_a_quarter_of_an_hour(apiary: Caller, make_settings: SettingsMaker) -> None:
    assert "X-Amz-Expires=900" in str(_presigned(apiary)["url"])

    brief = Caller(create_app(make_settings(upload_ttl_s=1)), KEYS["apiary"])
    shown = _presigned(brief)
    expires_at = datetime.fromisoformat(str(shown["expires_at"]))
    wait_until(lambda: datetime.now(UTC) > expires_at + timedelta(seconds=1))

    late = requests.put(str(shown["url"]), data=bytes(10), headers=shown["headers"], timeout=10)
    assert late.status_code == 403


def test_an_upload_reads_and_lists_nothing(apiary: Caller) -> None:
    url = str(_presigned(apiary)["url"])

    assert requests.get(url, timeout=10).status_code == 403
    assert requests.delete(url, timeout=10).status_code == 403


def test_an_object_over_the_limit_is_refused_however_it_got_there(
    make_settings: SettingsMaker, store: Store, redis_client: redis.Redis
) -> None:
    caller = Caller(create_app(make_settings(max_image_bytes=100)), KEYS["apiary"])
    upload_id = "upl_" + "d" * 32
    store.put(upload_key("apiary", upload_id), bytes(101), "image/jpeg")

    check_problem(caller.send(job(image={"upload_id": upload_id})), 413, "image_file_too_large")


def test_the_client_finds_that_its_upload_came_though_the_answer_was_lost(apiary: Caller) -> None:
    view = _presigned(apiary)
    with ScriptedServer(Answer(hang_up=0), Answer(412)) as s3:
        shown = json.dumps({**view, "url": s3.url}).encode()
        with ScriptedServer(Answer(201, shown)) as server, Client(server.url, "key") as client:
            assert client.upload(b"0123456789") == view["upload_id"]

    assert [asked.method for asked in s3.asked] == ["PUT", "PUT"]


def test_links_of_a_result_open_its_own_files_and_nothing_beside(
    apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    job_id, foreign = apiary.a_job(), bakery.a_job()
    run_to_success(job_id, ledger, store)
    run_to_success(foreign, ledger, store)
    record = ledger.read(job_id)
    assert record is not None
    prefix = f"/{attempt_prefix('apiary', job_id, 1, 1, record.token)}/"

    urls = [file["url"] for file in apiary.get(f"/v1/jobs/{job_id}/result").json["files"]]

    assert urls
    for url in urls:
        assert prefix in url
        assert requests.get(url, timeout=10).status_code == 200
        elsewhere = url.replace(job_id, foreign).replace("/apiary/", "/bakery/")
        assert requests.get(elsewhere, timeout=10).status_code == 403
        assert requests.put(url, data=b"x", timeout=10).status_code == 403
        assert requests.get(url.partition("?")[0], timeout=10).status_code == 403


def test_a_manifest_that_names_foreign_keys_gets_no_links(
    apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    job_id, foreign = apiary.a_job(), bakery.a_job()
    secret = run_to_success(foreign, ledger, store)
    manifest = run_to_success(job_id, ledger, store)
    forged = manifest.model_copy(update={"files": secret.files})
    store.put(f"results/apiary/{job_id}/manifest.json", forged.model_dump_json().encode(), "application/json")

    check_problem(apiary.get(f"/v1/jobs/{job_id}/result"), 404, "result_not_found")
    check_problem(apiary.get(f"/v1/jobs/{job_id}/files/coco.json"), 404, "result_not_found")
