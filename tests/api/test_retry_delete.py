"""Ended jobs: retried, and deleted with everything they wrote."""

from __future__ import annotations

import threading

import pytest
import redis

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import Deleted, Retried
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, result_prefix, upload_key
from tests.api.caller import Caller, check_problem, claim, job, run_to_success
from tests.api.conftest import KEYS, MODEL, SettingsMaker
from tests.api.pictures import a_picture
from tests.waiting import wait_until

QUEUE = queue_name(MODEL, Priority.NORMAL)


def a_failed_job(caller: Caller, ledger: Ledger) -> str:
    job_id = caller.a_job()
    ledger.fail(claim(job_id, ledger), "store_unavailable", "The object store does not answer.")
    return job_id


def test_a_failed_job_is_queued_once_more(apiary: Caller, ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = a_failed_job(apiary, ledger)
    redis_client.delete(QUEUE)

    response = apiary.post(f"/v1/jobs/{job_id}/retry")

    shown = JobView.model_validate_json(response.data)
    assert (response.status_code, shown.id, shown.status, shown.error) == (202, job_id, Status.QUEUED, None)
    assert response.headers["Location"] == shown.urls.self
    assert [attempt.outcome for attempt in shown.attempts or ()] == ["store_unavailable"]
    assert redis_client.llen(QUEUE) == 1
    assert claim(job_id, ledger).attempt == 1


def test_a_retried_job_can_succeed_and_shows_both_attempts(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = a_failed_job(apiary, ledger)
    apiary.post(f"/v1/jobs/{job_id}/retry")

    run_to_success(job_id, ledger, store)

    shown = JobView.model_validate_json(apiary.get(f"/v1/jobs/{job_id}").data)
    assert [(attempt.number, attempt.outcome) for attempt in shown.attempts or ()] == [
        (1, "store_unavailable"),
        (1, "succeeded"),
    ]


def test_only_a_failed_job_is_retried(apiary: Caller, ledger: Ledger, store: Store) -> None:
    queued, processing, succeeded, canceled = (apiary.a_job() for _ in range(4))
    claim(processing, ledger)
    run_to_success(succeeded, ledger, store)
    ledger.cancel(canceled, "apiary")

    for job_id in (queued, processing, succeeded, canceled):
        check_problem(apiary.post(f"/v1/jobs/{job_id}/retry"), 409, "job_not_failed")


def test_a_retry_counts_among_the_jobs_in_flight(make_settings: SettingsMaker, ledger: Ledger) -> None:
    limited = Caller(create_app(make_settings(max_jobs_in_flight=1)), KEYS["apiary"])
    job_id = a_failed_job(limited, ledger)
    limited.a_job()

    check_problem(limited.post(f"/v1/jobs/{job_id}/retry"), 429, "too_many_jobs_in_flight")
    assert ledger.status(job_id) is Status.FAILED


def test_a_retried_job_whose_message_cannot_be_sent_is_owed(
    make_settings: SettingsMaker,
    redis_client: redis.Redis,
    redis_url: str,
    apiary: Caller,
    ledger: Ledger,
) -> None:
    job_id = a_failed_job(apiary, ledger)
    redis_client.delete(QUEUE)
    redis_client.execute_command("ACL", "SETUSER", "door", "on", ">word", "~mf:*", "+@all")
    settings = make_settings(redis_url=redis_url.replace("redis://", "redis://door:word@"))
    try:
        response = Caller(create_app(settings), KEYS["apiary"]).post(f"/v1/jobs/{job_id}/retry")
    finally:
        redis_client.execute_command("ACL", "DELUSER", "door")

    assert response.status_code == 202
    assert redis_client.llen(QUEUE) == 0
    assert ledger.silent_queues() == {QUEUE: 1}


def test_a_retry_whose_answer_redis_could_not_send_is_one_retry(
    apiary: Caller, ledger: Ledger, redis_client: redis.Redis
) -> None:
    job_id = a_failed_job(apiary, ledger)
    first = ledger.retry(job_id, "apiary", start_deadline_s=60, max_in_flight=9)
    token = str(redis_client.hget(f"mf:job:{job_id}", "retry"))

    again = ledger._retry(args=[job_id, "apiary", 60_000, 9, token])  # as the client does after a broken connection

    assert (first, again) == (Retried.QUEUED, "queued")
    assert redis_client.hget("mf:totals", "retried") == "1"


def test_a_deleted_job_leaves_nothing_behind_but_its_image(
    apiary: Caller, ledger: Ledger, store: Store, redis_client: redis.Redis
) -> None:
    image = store.put_upload("apiary", a_picture(), "image/png")
    job_id, other = apiary.a_job(image={"upload_id": image}), apiary.a_job()
    run_to_success(job_id, ledger, store)
    run_to_success(other, ledger, store)
    store.put(f"{result_prefix('apiary', job_id)}/attempt-9-9/coco.json", b"of an attempt that lost", "text/plain")

    response = apiary.delete(f"/v1/jobs/{job_id}")

    assert (response.status_code, response.data) == (204, b"")
    assert list(store.listed(f"{result_prefix('apiary', job_id)}/")) == []
    assert [key for key in redis_client.keys("*") if job_id in key] == []
    assert store.head(upload_key("apiary", image)) is not None
    assert apiary.get(f"/v1/jobs/{other}/result").status_code == 200
    assert [shown["id"] for shown in apiary.get("/v1/jobs").json["jobs"]] == [other]
    for again in (apiary.delete(f"/v1/jobs/{job_id}"), apiary.get(f"/v1/jobs/{job_id}")):
        check_problem(again, 404, "job_not_found")


def test_a_job_that_has_not_ended_is_not_deleted(apiary: Caller, ledger: Ledger) -> None:
    queued, processing = apiary.a_job(), apiary.a_job()
    claim(processing, ledger)

    for job_id in (queued, processing):
        check_problem(apiary.delete(f"/v1/jobs/{job_id}"), 409, "job_not_ended")
        assert ledger.read(job_id) is not None


def test_a_job_whose_objects_cannot_be_removed_stays_known_until_they_are(
    apiary: Caller, without_store: Caller, ledger: Ledger, store: Store
) -> None:
    job_id = a_failed_job(apiary, ledger)
    store.put(f"{result_prefix('apiary', job_id)}/attempt-1-1/coco.json", b"{}", "application/json")

    refused = without_store.delete(f"/v1/jobs/{job_id}")

    check_problem(refused, 503, "store_unavailable")
    assert apiary.get(f"/v1/jobs/{job_id}").json["status"] == "failed"
    # Its objects may be half gone by now, so nothing new may be written among them.
    check_problem(apiary.post(f"/v1/jobs/{job_id}/retry"), 409, "job_not_failed")
    assert apiary.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_a_job_that_was_deleted_meanwhile_is_gone(apiary: Caller, ledger: Ledger) -> None:
    job_id = a_failed_job(apiary, ledger)

    assert ledger.begin_deletion(job_id, "bakery") is Deleted.UNKNOWN
    assert ledger.begin_deletion(job_id, "apiary") is Deleted.BEGUN
    assert ledger.delete(job_id, "apiary") is Deleted.DELETED
    assert ledger.delete(job_id, "apiary") is Deleted.UNKNOWN


@pytest.mark.parametrize("rest", ["/events", "/retry", ""])
def test_another_tenants_job_can_neither_be_followed_nor_retried_nor_deleted(
    apiary: Caller, bakery: Caller, ledger: Ledger, rest: str
) -> None:
    job_id, never = a_failed_job(apiary, ledger), "job_" + "0" * 32
    ask = {"/events": bakery.get, "/retry": bakery.post, "": bakery.delete}[rest]

    theirs = check_problem(ask(f"/v1/jobs/{job_id}{rest}"), 404, "job_not_found")
    nobodys = check_problem(ask(f"/v1/jobs/{never}{rest}"), 404, "job_not_found")

    assert theirs.detail == nobodys.detail
    assert ledger.status(job_id) is Status.FAILED


def test_two_retries_at_once_are_one(apiary: Caller, ledger: Ledger, redis_client: redis.Redis) -> None:
    job_id = a_failed_job(apiary, ledger)
    statuses: list[int] = []

    def retry() -> None:
        statuses.append(Caller(apiary.app, KEYS["apiary"]).post(f"/v1/jobs/{job_id}/retry").status_code)

    callers = [threading.Thread(target=retry) for _ in range(8)]
    for thread in callers:
        thread.start()
    wait_until(lambda: len(statuses) == 8)

    assert sorted(statuses) == [202, *[409] * 7]
    assert redis_client.hget("mf:totals", "retried") == "1"


def test_a_full_redis_takes_nothing_in_and_lets_everything_end(
    apiary: Caller, ledger: Ledger, store: Store, redis_client: redis.Redis
) -> None:
    retried, deleted = a_failed_job(apiary, ledger), a_failed_job(apiary, ledger)
    finished, canceled = apiary.a_job(), apiary.a_job()
    before = {key: redis_client.dump(key) for key in redis_client.keys("*")}
    redis_client.config_set("maxmemory", 1)
    try:
        refused = [apiary.send(job()), apiary.send(job(), Idempotency_Key="order-42")]
        after = {key: redis_client.dump(key) for key in redis_client.keys("*")}
        run_to_success(finished, ledger, store)
        let_through = [
            apiary.post(f"/v1/jobs/{retried}/retry"),
            apiary.delete(f"/v1/jobs/{deleted}"),
            apiary.post(f"/v1/jobs/{canceled}/cancel"),
        ]
    finally:
        redis_client.config_set("maxmemory", 0)

    for response in refused:
        check_problem(response, 503, "queue_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert after == before
    assert [response.status_code for response in let_through] == [202, 204, 200]
    ends = [ledger.status(job_id) for job_id in (retried, deleted, canceled, finished)]
    assert ends == [Status.QUEUED, None, Status.CANCELED, Status.SUCCEEDED]
