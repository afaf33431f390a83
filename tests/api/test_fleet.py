"""The fleet as operators and autoscalers see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jsonschema
import pytest
import redis
from click.testing import CliRunner
from flask import Flask

from maskfleet.api.app import create_app
from maskfleet.cli.main import main
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.fleet import FleetView, ModelFleet
from tests.api.caller import Caller, check_problem, claim, job
from tests.api.conftest import KEYS, MODEL, OTHER_MODEL, SettingsMaker


def scaler(app: Flask, key_store: KeyStore) -> Caller:
    _, key = key_store.create("scaler", [Scope.FLEET])
    return Caller(app, key.get_secret_value())


def test_an_autoscaler_reads_the_number_of_one_model_at_the_top(
    app: Flask, apiary: Caller, key_store: KeyStore, ledger: Ledger, worker_registry: WorkerRegistry
) -> None:
    for _ in range(3):
        apiary.a_job()
    claim(apiary.a_job(), ledger)
    worker_registry.announce(WorkerSeen("a-worker", MODEL, "cpu", 1, 0))

    found = scaler(app, key_store).get(f"/v1/fleet/model?name={MODEL}").json

    assert (found["model"], found["desired_workers"], found["reason"]) == (MODEL, 1, "running")
    assert (found["queued"], found["running"], found["backlog_s"]) == (3, 1, 20)  # none measured: 5 s each
    assert found["workers"] == {"starting": 0, "idle": 0, "busy": 1, "draining": 0, "withdrawn": 0}
    assert [one["priority"] for one in found["classes"]] == ["interactive", "normal", "bulk"]
    assert found["classes"][1]["job_s"] is None
    assert found["explanation"].startswith("3 queued and 1 running jobs are 20 s of work for one worker.")
    assert scaler(app, key_store).get("/v1/fleet/model").json["model"] == MODEL


def test_a_model_whose_name_has_a_slash_is_named_in_the_query(
    make_settings: SettingsMaker, key_store: KeyStore
) -> None:
    name = "facebook/sam-vit-base"
    app = create_app(make_settings(models=f"{OTHER_MODEL},{name}", model_min_workers=f"{name}:3"))

    for path in (f"/v1/fleet/model?name={name}", "/v1/fleet/model?name=facebook%2Fsam-vit-base"):
        found = scaler(app, key_store).get(path).json
        assert (found["model"], found["desired_workers"], found["reason"]) == (name, 3, "minimum")


def test_the_settings_decide_the_target_and_the_bounds(
    make_settings: SettingsMaker, key_store: KeyStore, redis_client: redis.Redis
) -> None:
    app = create_app(
        make_settings(target_wait_s="normal:10,bulk:3600", expected_job_s=20, max_workers=4, rate_limit="")
    )
    caller = Caller(app, KEYS["apiary"])
    for _ in range(6):
        caller.a_job()

    found = scaler(app, key_store).get("/v1/fleet/model").json

    assert (found["desired_workers"], found["reason"], found["max_workers"]) == (4, "maximum", 4)
    assert [one["target_wait_s"] for one in found["classes"]] == [10, 10, 3600]
    assert "That would make 6; max_workers is 4." in found["explanation"]


def test_an_unknown_model_is_refused_with_the_known_ones(app: Flask, key_store: KeyStore) -> None:
    problem = check_problem(scaler(app, key_store).get("/v1/fleet/model?name=nope"), 404, "model_not_found")

    assert MODEL in problem.detail
    check_problem(scaler(app, key_store).get("/v1/fleet/model?model=x"), 422, "invalid_query")


def test_a_key_of_an_autoscaler_opens_nothing_else(
    app: Flask, key_store: KeyStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKFLEET_REDIS_URL", redis_url)
    made = CliRunner().invoke(main, ["keys", "create", "--tenant", "scaler", "--scope", "fleet"])
    caller = Caller(app, made.stdout.strip())

    assert caller.get("/v1/fleet/model").status_code == 200
    for refused in (
        caller.get("/v1/fleet"),
        caller.get("/v1/jobs"),
        caller.get("/v1/models"),
        caller.get("/metrics"),
        caller.send(job()),
    ):
        check_problem(refused, 403, "missing_scope")
    _, writing = key_store.create("apiary", [Scope.READ, Scope.WRITE])
    check_problem(Caller(app, writing.get_secret_value()).get("/v1/fleet/model"), 403, "missing_scope")


def test_an_operator_sees_every_worker_and_what_it_does(
    apiary: Caller, ledger: Ledger, worker_registry: WorkerRegistry
) -> None:
    running = apiary.a_job()
    claim(running, ledger)
    worker_registry.announce(WorkerSeen("a-worker", MODEL, "cuda", 1, 7, version="0.1.0"))
    worker_registry.announce(WorkerSeen("idle", MODEL, "cpu", 1, 0))
    worker_registry.announce(WorkerSeen("new", OTHER_MODEL, "cpu", 1, 0, loads=True))
    worker_registry.announce(WorkerSeen("wrong", OTHER_MODEL, "cpu", 1, 0, fault="clock_wrong: off"))

    response = apiary.get("/v1/fleet")

    view = FleetView.model_validate_json(response.data)
    assert [model.model for model in view.models] == [MODEL, OTHER_MODEL]
    assert {worker.node: (worker.state, worker.job) for worker in view.workers} == {
        "a-worker": ("busy", running),
        "idle": ("idle", None),
        "new": ("starting", None),
        "wrong": ("withdrawn", None),
    }
    busy, *_, wrong = view.workers
    assert (busy.device, busy.jobs, busy.version, busy.fault) == ("cuda", 7, "0.1.0", None)
    assert busy.since is not None
    assert datetime.now(UTC) - busy.since < timedelta(minutes=1)
    assert wrong.fault == "clock_wrong: off"
    assert view.models[1].workers.starting == 1


def test_the_answers_are_as_the_document_says(app: Flask, apiary: Caller) -> None:
    document = app.test_client().get("/openapi.json").json
    apiary.a_job()

    for path, schema in (("/v1/fleet", "FleetView"), ("/v1/fleet/model", "ModelFleet")):
        validator = jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{schema}"})
        validator.validate(apiary.get(path).json)


def test_prometheus_sees_the_same(apiary: Caller, ledger: Ledger, worker_registry: WorkerRegistry) -> None:
    for _ in range(40):
        apiary.a_job(image={"url": "https://example.com/bee.jpg"})
    claim(apiary.a_job(), ledger)
    worker_registry.announce(WorkerSeen("a-worker", MODEL, "cpu", 1, 0))
    worker_registry.announce(WorkerSeen("new", MODEL, "cpu", 1, 0, loads=True))

    figures = apiary.get("/metrics").text

    view = ModelFleet.model_validate_json(apiary.get("/v1/fleet/model").data)
    assert view.desired_workers == 4  # 40 jobs of 5 s within 60 s, of whom one worker is there
    for line in (
        f'maskfleet_desired_workers{{model="{MODEL}"}} 4.0',
        f'maskfleet_backlog_seconds{{model="{MODEL}"}} 205.0',
        f'maskfleet_jobs_queued{{model="{MODEL}",priority="normal",queue="sam.{MODEL}.normal"}} 40.0',
        f'maskfleet_jobs_running{{model="{MODEL}",priority="normal",queue="sam.{MODEL}.normal"}} 1.0',
        f'maskfleet_workers{{model="{MODEL}",state="busy"}} 1.0',
        f'maskfleet_workers{{model="{MODEL}",state="starting"}} 1.0',
        f'maskfleet_workers_ready{{model="{MODEL}"}} 1.0',
        f'maskfleet_desired_workers{{model="{OTHER_MODEL}"}} 0.0',
        f'maskfleet_job_seconds{{model="{MODEL}",priority="normal",queue="sam.{MODEL}.normal"}} 0.0',
    ):
        assert line in figures.splitlines()


def test_without_redis_an_autoscaler_is_told_so_and_not_zero(without_redis: Caller) -> None:
    for path in ("/v1/fleet", "/v1/fleet/model"):
        check_problem(without_redis.get(path), 503, "queue_unavailable")
    assert "maskfleet_desired_workers{" not in without_redis.get("/metrics").text
