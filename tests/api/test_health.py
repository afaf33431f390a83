"""Health checks and metrics, and what the API does when Redis or S3 is down."""

from __future__ import annotations

import re

import redis
from flask import Flask
from flask.testing import FlaskClient

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.version import SCHEMA
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.status import Status
from tests.api.caller import Caller, check_problem, claim, job
from tests.api.conftest import KEYS, MODEL, SettingsMaker

UNKNOWN_JOB = "/v1/jobs/job_" + "0" * 32


def test_a_service_whose_parts_answer_is_live_and_ready(new_app: Flask) -> None:
    client = new_app.test_client()
    assert client.get("/live").json == {"status": "live"}
    assert client.get("/ready").json == {"status": "ready"}


def test_without_redis_nothing_is_taken_in_and_the_caller_is_told_to_come_again(without_redis: Caller) -> None:
    responses = [
        without_redis.send(job()),
        without_redis.get(UNKNOWN_JOB),
        without_redis.get(UNKNOWN_JOB, Prefer="wait=30"),
        without_redis.get("/v1/jobs"),
        without_redis.post(f"{UNKNOWN_JOB}/cancel"),
        without_redis.get(f"{UNKNOWN_JOB}/result"),
        without_redis.get("/v1/models"),
        without_redis.get("/ready"),
    ]

    for response in responses:
        check_problem(response, 503, "queue_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert without_redis.get("/live").status_code == 200


def test_a_service_that_finds_a_ledger_of_another_version_takes_nothing_in(
    make_settings: SettingsMaker, redis_client: redis.Redis
) -> None:
    # Like one that started while Redis was down: nothing has been checked yet.
    door = Caller(create_app(make_settings()), KEYS["apiary"])
    redis_client.set("mf:schema", SCHEMA + 1)

    response = door.send(job())

    check_problem(response, 503, "ledger_version")
    assert redis_client.keys("mf:*") == ["mf:schema"]


def test_a_recorded_job_is_taken_in_though_its_message_cannot_be_sent(
    make_settings: SettingsMaker, redis_client: redis.Redis, redis_url: str, ledger: Ledger
) -> None:
    # A user that may write the ledger's keys but no queue.
    redis_client.execute_command("ACL", "SETUSER", "door", "on", ">word", "~mf:*", "+@all")
    settings = make_settings(redis_url=redis_url.replace("redis://", "redis://door:word@"))
    caller = Caller(create_app(settings), KEYS["apiary"])
    try:
        response = caller.send(job())
    finally:
        redis_client.execute_command("ACL", "DELUSER", "door")

    assert response.status_code == 202
    record = ledger.read(response.json["id"])
    assert record is not None
    assert record.status is Status.QUEUED
    assert ledger.silent_queues() == {record.queue: 1}  # the courier rings for it


def test_without_a_store_an_inline_image_is_not_taken_in(without_store: Caller, redis_client: redis.Redis) -> None:
    for response in (
        without_store.send(job()),
        without_store.send(job(image={"upload_id": "upl_" + "0" * 32})),
        without_store.get("/ready"),
    ):
        check_problem(response, 503, "store_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    # The ledger's version and id, which whoever comes first leaves there; and no job.
    assert set(redis_client.keys("mf:*")) <= {"mf:schema", "mf:epoch"}
    assert without_store.send(job(image={"url": "https://example.com/bee.jpg"})).status_code == 202


def test_a_service_without_its_bucket_is_not_ready(make_settings: SettingsMaker) -> None:
    client = create_app(make_settings(bucket="nowhere")).test_client()

    check_problem(client.get("/ready"), 503, "store_misconfigured")


def test_the_figures_show_requests_and_jobs(
    apiary: Caller, client: FlaskClient, ledger: Ledger, worker_registry: WorkerRegistry
) -> None:
    apiary.a_job(priority="bulk")
    claim(apiary.a_job(), ledger)
    canceled = apiary.a_job()
    apiary.post(f"/v1/jobs/{canceled}/cancel")
    worker_registry.announce(WorkerSeen("node-0", MODEL, "cpu", 1, 0))
    client.open("/live", method="BREW")

    figures = apiary.get("/metrics").text

    for line in (
        'maskfleet_jobs_queued{model="sam-demo",priority="bulk",queue="sam.sam-demo.bulk"} 1.0',
        'maskfleet_jobs_queued{model="sam-demo",priority="normal",queue="sam.sam-demo.normal"} 0.0',
        'maskfleet_jobs_total{status="canceled"} 1.0',
        "maskfleet_jobs_created_total 3.0",
        "maskfleet_jobs_processing 1.0",
        "maskfleet_deliveries_waiting 0.0",
        'maskfleet_deliveries_total{state="given_up"} 0.0',
        "maskfleet_bells_rung_total 0.0",
        'maskfleet_oldest_queued_seconds{model="sam-demo",priority="normal",queue="sam.sam-demo.normal"} 0.0',
        'maskfleet_workers_ready{model="sam-demo"} 1.0',
        "maskfleet_ledger_up 1.0",
    ):
        assert line in figures.splitlines()
    bulk = 'maskfleet_oldest_queued_seconds{model="sam-demo",priority="bulk",queue="sam.sam-demo.bulk"}'
    [age] = re.findall(rf"^{re.escape(bulk)} (.+)$", figures, re.MULTILINE)
    assert 0 <= float(age) < 60
    assert 'maskfleet_http_requests_total{method="POST",route="/v1/jobs",status="202"}' in figures
    assert 'maskfleet_http_request_seconds_count{method="POST",route="/v1/jobs"}' in figures
    assert 'method="other",route="unmatched",status="405"' in figures
    assert "BREW" not in figures
    assert canceled not in figures


def test_the_figures_say_that_the_ledger_is_away(without_redis: Caller) -> None:
    figures = without_redis.get("/metrics").text

    assert "maskfleet_ledger_up 0.0" in figures
    assert "maskfleet_jobs_queued{" not in figures
