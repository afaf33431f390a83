"""Records that a newer version wrote, or that are damaged: one of them never hides the others."""

from __future__ import annotations

import json

import pytest
import redis

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import read_spec
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, check_problem, job, run_to_success


def test_a_list_shows_jobs_whose_fields_states_and_outputs_only_a_newer_version_knows(
    apiary: Caller, redis_client: redis.Redis
) -> None:
    newer, ours = apiary.a_job(), apiary.a_job()
    record = f"mf:job:{newer}"
    spec = json.loads(redis_client.hget(record, "spec"))
    spec |= {"tint": "blue", "outputs": ["dxf"], "priority": "overnight", "params": {"smoothing": 1}}
    text = json.dumps(spec)
    redis_client.hset(record, mapping={"spec": text, "summary": text, "status": "paused", "tint": "blue"})

    shown = {one["id"]: one["status"] for one in apiary.get("/v1/jobs").json["jobs"]}

    assert shown == {newer: "paused", ours: "queued"}
    assert apiary.get(f"/v1/jobs/{newer}").json["priority"] == "overnight"
    with pytest.raises(RecordUnreadable, match="/outputs/0: "):
        read_spec(json.dumps(spec | {"priority": "normal"}))


@pytest.mark.parametrize("damage", [{"summary": "{"}, {"attempt": "many"}, {"result": "[]"}, {"created_ms": ""}])
def test_a_damaged_record_is_left_out_of_the_list_and_named_when_asked_for(
    apiary: Caller, redis_client: redis.Redis, damage: dict[str, str]
) -> None:
    damaged, whole = apiary.a_job(), apiary.a_job()
    redis_client.hset(f"mf:job:{damaged}", mapping=damage)

    listed = [one["id"] for one in apiary.get("/v1/jobs").json["jobs"]]

    assert listed == [whole]
    check_problem(apiary.get(f"/v1/jobs/{damaged}"), 500, "record_unreadable")


def test_a_damaged_webhook_is_left_out_of_the_list(
    apiary: Caller, redis_client: redis.Redis, ledger: Ledger, store: Store
) -> None:
    hook = {"url": "https://example.com/hook", "events": ["started", "succeeded"]}
    job_id = apiary.a_job(webhook=hook)
    run_to_success(job_id, ledger, store)
    ids = [one["id"] for one in apiary.get(f"/v1/jobs/{job_id}/deliveries").json["deliveries"]]
    redis_client.hset(f"mf:delivery:{ids[0]}", "created_ms", "long ago")

    shown = [one["id"] for one in apiary.get(f"/v1/jobs/{job_id}/deliveries").json["deliveries"]]

    assert (len(ids), shown) == (2, ids[1:])


def test_what_a_newer_worker_says_of_a_result_is_passed_on(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    run_to_success(job_id, ledger, store)
    record = ledger.read(job_id)
    assert record is not None
    assert record.result is not None
    manifest = json.loads(store.read(record.result.manifest_key))
    manifest["tint"] = manifest["files"][0]["tint"] = "blue"
    store.put(record.result.manifest_key, json.dumps(manifest).encode(), "application/json")

    shown = apiary.get(f"/v1/jobs/{job_id}/result").json

    assert (shown["tint"], shown["files"][0]["tint"]) == ("blue", "blue")


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/jobs", job(tint="blue"), "/tint"),
        ("/v1/jobs", job(params={"smoothing": 1}), "/params/smoothing"),
        ("/v1/jobs", job(outputs=["dxf"]), "/outputs/0"),
        ("/v1/uploads", {"content_type": "image/png", "size": 1, "tint": "blue"}, "/tint"),
        ("/v1/webhooks/ping", {"url": "https://example.com/", "tint": "blue"}, "/tint"),
    ],
)
def test_what_a_caller_sends_is_still_checked_to_the_last_field(
    apiary: Caller, path: str, body: dict[str, object], pointer: str
) -> None:
    answer = apiary.post(path, body)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json["errors"]] == [pointer]


def test_a_list_is_asked_for_by_a_state_that_exists(apiary: Caller) -> None:
    assert apiary.get("/v1/jobs?status=paused").status_code == 422


def test_a_client_takes_a_job_for_ended_that_ended_in_a_state_it_does_not_know(apiary: Caller) -> None:
    shown = apiary.get(f"/v1/jobs/{apiary.a_job()}").json

    running = JobView.model_validate({**shown, "status": "paused", "tint": "blue"})
    ended = JobView.model_validate({**shown, "status": "archived", "ended_at": "2030-01-01T00:00:00Z"})

    assert (running.status, running.ended) == ("paused", False)
    assert (ended.status, ended.ended) == ("archived", True)
    assert running.model_dump(mode="json")["tint"] == "blue"
