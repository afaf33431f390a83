"""Jobs: submitted, fetched, listed, canceled, and separated by tenant."""

from __future__ import annotations

import json
import threading
import time

import pytest
import redis
from werkzeug.test import TestResponse

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import EverythingJob, Priority
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, upload_key
from tests.api.caller import Caller, as_base64, check_problem, claim, job, run_to_success
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.api.pictures import a_picture
from tests.waiting import wait_until


def test_a_job_is_recorded_and_put_into_its_queue(apiary: Caller, ledger: Ledger, redis_client: redis.Redis) -> None:
    response = apiary.send(job(priority="interactive", metadata={"order": "42"}))

    assert response.status_code == 202
    shown = JobView.model_validate_json(response.data)
    assert (shown.status, shown.model, shown.priority) == (Status.QUEUED, MODEL, "interactive")
    assert shown.queue_position == 0
    assert shown.metadata == {"order": "42"}
    assert response.headers["Location"] == shown.urls.self == f"http://localhost/v1/jobs/{shown.id}"
    record = ledger.read(shown.id)
    assert record is not None
    assert record.tenant == "apiary"
    queue = queue_name(MODEL, Priority.INTERACTIVE)
    assert redis_client.llen(queue) == 1
    assert claim(shown.id, ledger).id == shown.id


def test_the_record_holds_no_image_but_the_id_of_its_upload(apiary: Caller, ledger: Ledger, store: Store) -> None:
    picture = a_picture((640, 480), "PNG")

    record = claim(apiary.a_job(image={"base64": as_base64(picture)}), ledger)

    assert as_base64(picture)[:40] not in record.spec_json
    assert isinstance(record.spec, EverythingJob)
    upload_id = record.spec.image.upload_id
    assert upload_id is not None
    assert store.read(upload_key("apiary", upload_id)) == picture


def test_an_image_part_is_stored_as_an_inline_image_is(apiary: Caller, ledger: Ledger, store: Store) -> None:
    picture = a_picture((64, 48), "WEBP")
    parts = [("job", json.dumps({"mode": "point", "prompts": [{"points": [[63, 47]]}]}))]

    response = apiary.post_parts([*parts, ("image", (picture, "bee.webp", "image/webp"))])

    assert response.status_code == 202, response.text
    record = claim(response.json["id"], ledger)
    assert record.spec.mode == "point"
    assert record.spec.image.upload_id is not None
    assert store.read(upload_key("apiary", record.spec.image.upload_id)) == picture


def test_the_parts_of_a_request_may_come_as_curl_sends_them(apiary: Caller) -> None:
    parts = [
        ("image", (a_picture(), "bee.jpg", "image/jpeg")),
        ("job", (b'{"mode": "everything"}', "job.json", "application/json")),
    ]

    assert apiary.post_parts(parts).status_code == 202


def test_a_job_names_its_image_by_url_or_bucket(apiary: Caller) -> None:
    assert apiary.send(job(image={"s3_uri": "s3://photos/bee.jpg"})).status_code == 202
    assert apiary.send(job(image={"url": "https://example.com/bee.jpg"})).status_code == 202


def test_a_prompt_may_lie_anywhere_on_the_picture_as_it_is_turned(apiary: Caller) -> None:
    turned = {"base64": as_base64(a_picture((64, 48), orientation=6))}  # displayed as 48×64

    assert apiary.send(job(mode="point", image=turned, prompts=[{"points": [[47, 63]]}])).status_code == 202
    assert apiary.send(job(mode="box", image=turned, prompts=[{"box": [0, 0, 48, 64]}])).status_code == 202


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 5000)])
def test_an_odd_but_good_image_is_taken_in(apiary: Caller, size_wh: tuple[int, int]) -> None:
    assert apiary.send(job(image={"base64": as_base64(a_picture(size_wh, "PNG"))})).status_code == 202


def test_the_same_key_and_body_give_the_same_job(apiary: Caller, redis_client: redis.Redis) -> None:
    first = apiary.send(job(), Idempotency_Key="order-42")
    again = apiary.send(job(), Idempotency_Key="order-42")

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json["id"] == first.json["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert redis_client.llen(queue_name(MODEL, Priority.NORMAL)) == 1


def test_the_same_key_and_image_give_the_same_job_in_either_form(apiary: Caller) -> None:
    first = apiary.send(job(), Idempotency_Key="order-42")

    parts = [("job", '{"mode":  "everything"}'), ("image", (a_picture(), "bee.jpg", "image/jpeg"))]
    again = apiary.post_parts(parts, Idempotency_Key="order-42")

    assert again.json["id"] == first.json["id"]


@pytest.mark.parametrize(
    "change", [{"metadata": {"order": "43"}}, {"image": {"base64": as_base64(a_picture((65, 48)))}}]
)
def test_the_same_key_with_another_body_or_image_is_refused(apiary: Caller, change: dict[str, object]) -> None:
    apiary.send(job(), Idempotency_Key="order-42")

    check_problem(apiary.send(job(**change), Idempotency_Key="order-42"), 422, "idempotency_key_reused")


def test_two_tenants_may_use_the_same_key(apiary: Caller, bakery: Caller) -> None:
    first = apiary.send(job(), Idempotency_Key="order-42")
    second = bakery.send(job(mode="point", prompts=[{"points": [[1, 1]]}]), Idempotency_Key="order-42")

    assert second.status_code == 202
    assert first.json["id"] != second.json["id"]


def test_an_unreadable_idempotency_key_is_refused(apiary: Caller) -> None:
    check_problem(apiary.send(job(), Idempotency_Key="k" * 256), 400, "invalid_idempotency_key")
    check_problem(apiary.send(job(), Idempotency_Key="ключ"), 400, "invalid_idempotency_key")


def test_a_tenant_with_too_many_jobs_waits_until_one_has_ended(
    make_settings: SettingsMaker, ledger: Ledger, bakery: Caller
) -> None:
    limited = Caller(create_app(make_settings(max_jobs_in_flight=2)), KEYS["apiary"])
    first = limited.a_job()
    limited.a_job()

    refused = limited.send(job())

    check_problem(refused, 429, "too_many_jobs_in_flight")
    assert int(refused.headers["Retry-After"]) > 0
    assert bakery.send(job()).status_code == 202
    limited.post(f"/v1/jobs/{first}/cancel")
    assert limited.send(job()).status_code == 202


def test_a_job_shows_its_place_in_the_queue(apiary: Caller) -> None:
    first, second = apiary.a_job(), apiary.a_job()

    assert apiary.get(f"/v1/jobs/{first}").json["queue_position"] == 0
    assert apiary.get(f"/v1/jobs/{second}").json["queue_position"] == 1


def test_a_job_shows_when_it_will_about_start_once_its_queue_was_measured(
    apiary: Caller, ledger: Ledger, store: Store, worker_registry: WorkerRegistry, redis_client: redis.Redis
) -> None:
    ahead, behind, urgent = apiary.a_job(), apiary.a_job(), apiary.a_job(priority="interactive")
    worker_registry.announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))
    worker_registry.announce(WorkerSeen("node-1", MODEL, "cpu", 2, 0))
    unmeasured = apiary.get(f"/v1/jobs/{behind}").json

    redis_client.hset("mf:totals", f"pace:{queue_name(MODEL, Priority.NORMAL)}", 10_000)

    assert (unmeasured["queue_position"], unmeasured["starts_in_s"]) == (1, None)
    # Two jobs are ahead of it, including the urgent one, and two workers share them.
    assert apiary.get(f"/v1/jobs/{behind}").json["starts_in_s"] == 10
    listed = {shown["id"]: shown for shown in apiary.get("/v1/jobs").json["jobs"]}
    assert {job_id: listed[job_id]["starts_in_s"] for job_id in (ahead, behind, urgent)} == {
        ahead: 5,
        behind: 10,
        urgent: None,
    }
    run_to_success(behind, ledger, store)
    started = apiary.get(f"/v1/jobs/{behind}").json
    assert (started["queue_position"], started["starts_in_s"]) == (None, None)


def test_a_job_shows_its_attempts_and_a_list_does_not(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    ledger.release(claim(job_id, ledger), delay_s=0, charged=True, outcome="out_of_memory")
    claim(job_id, ledger)

    shown = JobView.model_validate_json(apiary.get(f"/v1/jobs/{job_id}").data)

    assert shown.attempts is not None
    first, second = shown.attempts
    assert (first.number, first.worker, first.outcome) == (1, "a-worker", "out_of_memory")
    assert (second.number, second.outcome, second.ended_at) == (2, None, None)
    assert first.ended_at is not None
    assert first.started_at <= first.ended_at <= second.started_at
    (listed,) = apiary.get("/v1/jobs").json["jobs"]
    assert listed["attempts"] is None
    assert apiary.send(job()).json["attempts"] == []


def test_links_begin_with_the_public_address_when_one_is_set(make_settings: SettingsMaker, ledger: Ledger) -> None:
    caller = Caller(create_app(make_settings(public_url="https://masks.example.com/")), KEYS["apiary"])

    response = caller.send(job())

    assert response.json["urls"]["self"] == f"https://masks.example.com/v1/jobs/{response.json['id']}"


def test_waiting_ends_when_the_job_does(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    worker = threading.Thread(target=run_to_success, args=(job_id, ledger, store))

    began = time.monotonic()
    worker.start()
    response = apiary.get(f"/v1/jobs/{job_id}", Prefer="wait=30")
    worker.join()

    assert time.monotonic() - began < 15
    assert response.json["status"] == "succeeded"
    assert response.headers["Preference-Applied"] == "wait=30"


def test_waiting_is_cut_to_what_the_service_grants(make_settings: SettingsMaker, ledger: Ledger) -> None:
    caller = Caller(create_app(make_settings(max_wait_s=1)), KEYS["apiary"])

    response = caller.get(f"/v1/jobs/{caller.a_job()}", Prefer="respond-async, wait=3600")

    assert response.json["status"] == "queued"
    assert response.headers["Preference-Applied"] == "wait=1"


@pytest.mark.parametrize("preference", ["wait", "wait=", "wait=x", "wait=-1", "wait=0", "wait=" + "9" * 40, "await=9"])
def test_a_preference_that_is_not_understood_is_passed_over(apiary: Caller, preference: str) -> None:
    response = apiary.get(f"/v1/jobs/{apiary.a_job()}", Prefer=preference)

    assert response.status_code == 200
    assert "Preference-Applied" not in response.headers


def test_only_so_many_of_a_tenant_may_wait(make_settings: SettingsMaker, ledger: Ledger) -> None:
    app = create_app(make_settings(max_held_per_tenant=1))
    job_id = Caller(app, KEYS["apiary"]).a_job()
    responses: list[TestResponse] = []

    def wait_for_the_job() -> None:
        responses.append(Caller(app, KEYS["apiary"]).get(f"/v1/jobs/{job_id}", Prefer="wait=30"))

    waiting = [threading.Thread(target=wait_for_the_job) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: responses)
    ledger.cancel(job_id, "apiary")
    for thread in waiting:
        thread.join()

    turned_away, waited = responses
    check_problem(turned_away, 429, "too_many_held")
    assert waited.json["status"] == "canceled"


def test_jobs_are_listed_newest_first_page_by_page(apiary: Caller) -> None:
    sent = [apiary.a_job() for _ in range(5)]

    seen, path, pages = [], "/v1/jobs?limit=2", 0
    while path:
        page = apiary.get(path).json
        seen += [shown["id"] for shown in page["jobs"]]
        path, pages = page["next"], pages + 1

    # Jobs of the same millisecond are ordered by id.
    assert sorted(seen) == sorted(sent)
    assert pages == 3
    created = [apiary.get(f"/v1/jobs/{job_id}").json["created_at"] for job_id in seen]
    assert created == sorted(created, reverse=True)


def test_a_list_can_be_cut_to_one_state(apiary: Caller) -> None:
    jobs = [apiary.a_job() for _ in range(6)]
    for job_id in jobs[::2]:
        apiary.post(f"/v1/jobs/{job_id}/cancel")

    first = apiary.get("/v1/jobs?status=canceled&limit=2").json
    second = apiary.get(first["next"]).json

    found = [shown["id"] for page in (first, second) for shown in page["jobs"]]
    assert sorted(found) == sorted(jobs[::2])
    assert second["next"] is None
    assert apiary.get("/v1/jobs?status=failed").json == {"jobs": [], "next": None, "next_cursor": None}


@pytest.mark.parametrize("cursor", ["x", "!!", "AAAA", "MTo", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTpqb2JfMA"])
def test_a_cursor_that_was_never_given_is_refused(apiary: Caller, cursor: str) -> None:
    check_problem(apiary.get(f"/v1/jobs?cursor={cursor}"), 422, "invalid_cursor")


@pytest.mark.parametrize("query", ["status=asleep", "limit=0", "limit=101", "limit=x", "limit=", "page=2", "limit=%00"])
def test_a_query_that_is_not_understood_names_its_parameter(apiary: Caller, query: str) -> None:
    problem = check_problem(apiary.get(f"/v1/jobs?{query}"), 422, "invalid_query")

    assert problem.errors is not None
    assert [fault.pointer for fault in problem.errors] == [f"/{query.partition('=')[0]}"]


def test_a_waiting_job_is_canceled_at_once(apiary: Caller) -> None:
    job_id = apiary.a_job()

    response = apiary.post(f"/v1/jobs/{job_id}/cancel")

    assert (response.status_code, response.json["status"]) == (200, "canceled")
    check_problem(apiary.post(f"/v1/jobs/{job_id}/cancel"), 409, "job_already_ended")


def test_a_running_job_is_told_to_stop(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    claim(job_id, ledger)

    response = apiary.post(f"/v1/jobs/{job_id}/cancel")

    assert (response.status_code, response.json["status"]) == (202, "processing")
    assert response.json["cancel_requested"] is True


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "job_", "nonsense", "%00", "%ff%fe", "job_" + "A" * 5000])
def test_an_unknown_job_is_not_found(apiary: Caller, job_id: str) -> None:
    check_problem(apiary.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")


def test_another_tenants_job_is_as_unknown_as_one_that_never_was(
    apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    job_id, never = apiary.a_job(), "job_" + "0" * 32
    run_to_success(job_id, ledger, store)

    for method, rest in (("GET", ""), ("GET", "/result"), ("GET", "/files/coco.json"), ("POST", "/cancel")):
        ask = bakery.get if method == "GET" else bakery.post
        theirs = check_problem(ask(f"/v1/jobs/{job_id}{rest}"), 404, "job_not_found")
        nobodys = check_problem(ask(f"/v1/jobs/{never}{rest}"), 404, "job_not_found")
        assert theirs.detail == nobodys.detail
    assert bakery.get("/v1/jobs").json["jobs"] == []
    assert apiary.get(f"/v1/jobs/{job_id}").json["status"] == "succeeded"


def test_the_models_are_listed_with_their_ready_workers(
    apiary: Caller, ledger: Ledger, worker_registry: WorkerRegistry
) -> None:
    worker_registry.announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))

    assert apiary.get("/v1/models").json == {
        "models": [
            {"name": "sam-demo", "default": True, "ready_workers": 1},
            {"name": "sam-other", "default": False, "ready_workers": 0},
        ]
    }
