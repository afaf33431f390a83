"""docs/operations.md is accurate: its tests exist, its metrics are exported, its settings and rules work."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import boto3
import pytest

from maskfleet.api.app import create_app
from maskfleet.jobs.schema.spec import EverythingJob
from maskfleet.jobs.settings import ApiSettings, CourierSettings, WorkerSettings
from tests.conftest import BUCKET


@pytest.fixture
def document(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text()


def test_the_tests_that_show_the_promises_exist(document: str, repository: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document)

    assert len(named) > 15
    for path, name in named:
        tree = ast.parse((repository / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_figures_to_watch_are_exported(document: str, shared_fields: dict[str, str]) -> None:
    client = create_app(ApiSettings(**shared_fields, api_keys="apiary:a-key")).test_client()
    client.get("/live")
    exported = client.get("/metrics", headers={"Authorization": "Bearer a-key"}).text

    # A worker's own are in tests/worker/test_figures.py.
    for figure in set(re.findall(r"`(maskfleet_(?!worker_)\w+)`", document)):
        assert re.search(rf"^{figure}(_count)?[ {{]", exported, re.MULTILINE), figure


def test_the_settings_are_read_and_have_the_defaults_that_are_told(document: str) -> None:
    fields = {**WorkerSettings.model_fields, **CourierSettings.model_fields, **ApiSettings.model_fields}
    fields |= {name: EverythingJob.model_fields[name] for name in ("start_deadline_s", "run_timeout_s")}
    section = document.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| [^|]+ \| ([0-9, ]+) \|", section, re.MULTILINE)

    assert len(rows) >= 9
    for names, defaults in rows:
        told = dict(zip(re.findall(r"`(\w+)`", names), (float(value) for value in defaults.split(",")), strict=True))
        assert told == {name: fields[name].default for name in told}
    for name in re.findall(r"`(\w+_s)`", document):
        assert name in fields, name


def test_each_setting_is_in_one_row_and_each_row_is_a_setting(document: str) -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([a-zA-Z, ]+) \|[^|]*\|", document, re.MULTILINE)
    programs = {"API": ApiSettings, "worker": WorkerSettings, "courier": CourierSettings}
    told: list[str] = []

    for names, used_by in rows:
        if used_by == "each job":
            continue
        for name in re.findall(r"\w+", names):
            told.append(name)
            readers = {program for program, settings in programs.items() if name in settings.model_fields}
            assert readers >= set(used_by.split(", ")) - {"all"}, name
            assert "all" not in used_by or readers == programs.keys(), name

    assert sorted(told) == sorted({name for settings in programs.values() for name in settings.model_fields})


def test_every_variable_in_a_document_is_read(repository: Path) -> None:
    fields = {name for settings in (ApiSettings, WorkerSettings, CourierSettings) for name in settings.model_fields}
    clients = {"api_url", "api_key", "listen_secrets"}
    gone = {"webhook_secrets", "republish_s"}  # where they tell an operator what became of them
    composed = {f"redis_password_{program}" for program in ("api", "worker", "courier", "operator")}
    places = {
        "README.md": clients,
        "CHANGELOG.md": clients | gone,
        "docs/*.md": clients | gone,
        "docker-compose.yml": composed,
        "deploy/*.yml": composed,
        "deploy/*Dockerfile": set(),
        "benchmarks/*.md": clients,
        "examples/*.md": clients,
    }

    for pattern, others in places.items():
        for path in repository.glob(pattern):
            named = {name.lower() for name in re.findall(r"MASKFLEET_([A-Z0-9_]*[A-Z0-9])\b", path.read_text())}
            assert named <= fields | others, path


def test_the_rules_for_the_bucket_are_taken_by_a_real_s3(document: str, store_fields: dict[str, str]) -> None:
    rules = json.loads(re.findall(r"```json\n(.+?)```", document, re.DOTALL)[0])
    s3 = boto3.client(
        "s3",
        endpoint_url=store_fields["s3_endpoint"],
        aws_access_key_id=store_fields["s3_access_key"],
        aws_secret_access_key=store_fields["s3_secret_key"],
        region_name="us-east-1",
    )

    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=rules)
    taken = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    s3.delete_bucket_lifecycle(Bucket=BUCKET)

    assert {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in taken} == {
        "uploads/": 9,
        "results/": 30,
        "batches/": 30,
        "embeddings/": 8,
    }
