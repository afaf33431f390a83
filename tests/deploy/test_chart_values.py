"""The chart's values: what is wrong stops the installation, and what is written about them is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskfleet.jobs.settings import ApiSettings, CourierSettings, SharedSettings, WorkerSettings
from tests.deploy.chart import NAMESPACE, NO_HELM, SETS, Object, over, read_values

helm_python = pytest.importorskip("helm_python", reason=NO_HELM)

#: Settings that have a value of their own, so that they cannot be set twice.
OWN = {
    *("redis_url", "redis_sentinel_password", "redis_ca", "s3_endpoint", "s3_public_endpoint", "s3_region"),
    *("s3_access_key", "s3_secret_key", "bucket", "model", "models", "model_revision", "public_url"),
    *("api_keys", "webhook_endpoints", "webhook_master_secrets", "webhook_shared_secrets"),
    *("trusted_proxies", "trusted_hosts", "bind", "metrics_bind", "metrics_dir"),
    *("min_workers", "max_workers", "model_min_workers", "model_max_workers"),
    *("slots_per_device", "device", "node", "precision", "drain_grace_s", "stop_grace_s", "health_host", "health_port"),
    "threads",  # no longer used
}

#: Of the smallest set of values: what is changed, and what the message must say.
REFUSED: dict[str, tuple[Object, str]] = {
    "a typo at the top": ({"api_": {}}, "api_"),
    "a typo in a program": ({"api": {"replica": 3}}, "replica"),
    "a typo in a setting": ({"settings": {"retention": 5}}, "retention"),
    "a worker's setting for the API": ({"api": {"settings": {"lease_s": 5}}}, "lease_s"),
    "a setting that has a value of its own": ({"settings": {"bucket": "b"}}, "bucket"),
    "a typo in a model": ({"models": {"base": {"divice": "cuda"}}}, "divice"),
    "a device that does not exist": ({"models": {"base": {"device": "gpu"}}}, "device"),
    "a precision that does not exist": ({"workers": {"precision": "fp16"}}, "precision"),
    "a model without a model": ({"models": {"base": {"model": None}}}, "model"),
    "a pool's name that is no label": ({"models": {"Base_": {"model": "a/b"}}, "defaultModel": "base"}, "Base_"),
    "no model at all": ({"models": {"base": None}}, "models"),
    "the same model twice": (
        {"models": {"more": {"model": "facebook/sam-vit-base"}}, "defaultModel": "base"},
        "the same model",
    ),
    "a model that is called as the workers without one": (
        {"outputs": {"replicas": 1}, "models": {"outputs": {"model": "a/b"}}, "defaultModel": "base"},
        "outputs.replicas",
    ),
    "several models and no default": ({"models": {"more": {"model": "a/b"}}}, "defaultModel"),
    "a default that does not exist": ({"defaultModel": "huge"}, "huge"),
    "no Redis": ({"redis": {"host": ""}}, "host"),
    "no secret of Redis": ({"redis": {"existingSecret": ""}}, "existingSecret"),
    "no secrets": ({"secrets": {"existingSecret": ""}}, "existingSecret"),
    "a password in the values": ({"redis": {"password": "x"}}, "password"),
    "authorities without TLS": ({"redis": {"caSecret": {"name": "ca"}}}, "tls"),
    "authorities for S3 without TLS": ({"s3": {"caSecret": {"name": "ca"}}}, "endpoint"),
    "Sentinels and a host": ({"redis": {"sentinels": ["a:26379"], "primary": "p"}}, "host"),
    "Sentinels without the primary's name": ({"redis": {"host": "", "sentinels": ["a:26379"]}}, "primary"),
    "Sentinels with TLS": ({"redis": {"host": "", "sentinels": ["a:26379"], "primary": "p", "tls": True}}, "tls"),
    "an Ingress whose controller is not trusted": (
        {"ingress": {"enabled": True, "host": "a.example"}},
        "trustedProxies",
    ),
    "an Ingress without a host": ({"ingress": {"enabled": True}, "api": {"trustedProxies": 1}}, "host"),
    "KEDA without a key": ({"scaling": {"trigger": "metrics-api"}}, "existingSecret"),
    "Prometheus without an address": ({"scaling": {"trigger": "prometheus"}}, "serverAddress"),
    "Prometheus without metrics": (
        {
            "scaling": {"trigger": "prometheus", "prometheus": {"serverAddress": "http://p:9090"}},
            "metrics": {"enabled": False},
        },
        "metrics",
    ),
    "more at least than at most": (
        {
            "scaling": {"trigger": "metrics-api", "metricsApi": {"existingSecret": "s"}},
            "workers": {"scaling": {"minReplicas": 9}},
        },
        "maxReplicas",
    ),
    "more API pods at least than at most": (
        {"api": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
        "maxReplicas",
    ),
    "a claim of one node for several pods": (
        {"workers": {"replicas": 3, "cache": {"create": True, "accessMode": "ReadWriteOnce"}}},
        "ReadWriteMany",
    ),
    "a claim that is there and made": ({"workers": {"cache": {"create": True, "existingClaim": "c"}}}, "existingClaim"),
    "root": ({"securityContext": {"runAsUser": 0}}, "runAsUser"),
    "no memory limit": ({"workers": {"resources": {"limits": {"memory": None}}}}, "memory"),
    "a digest that is none": ({"image": {"api": {"digest": "sha256:abc"}}}, "digest"),
    "a setting as a variable": ({"api": {"extraEnv": [{"name": "MASKFLEET_BIND", "value": "x"}]}}, "extraEnv"),
    "a budget that blocks every drain": ({"api": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "maxUnavailable"),
    "a drain beyond the longest job": ({"workers": {"drainGraceS": 4000}}, "drainGraceS"),
    "metrics on the API's port": ({"metrics": {"port": 8000}}, "port"),
    "a password in the URL of S3": ({"s3": {"endpoint": "https://key:secret@s3.example.com"}}, "endpoint"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_work_is_not_installed(why: str, render: Any, chart: Path) -> None:
    change, said = REFUSED[why]
    values = over(read_values(chart / "ci" / "minimal-cpu-values.yaml"), change)

    with pytest.raises(helm_python.HelmError, match=re.escape(said)) as refusal:
        render(values)

    assert "nil pointer" not in str(refusal.value)


@pytest.mark.parametrize("name", SETS)
def test_helm_finds_nothing_to_complain_about(name: str, chart: Path) -> None:
    report = helm_python.lint(chart, read_values(chart / "ci" / f"{name}-values.yaml"), namespace=NAMESPACE)

    # 1 is a recommendation: an icon.
    assert not [message for message in report["messages"] if message["severity"] > 1]
    assert not report["errors"]


def test_without_values_it_says_what_is_missing(render: Any) -> None:
    with pytest.raises(helm_python.HelmError, match="existingSecret") as refusal:
        render({})

    assert "models" in str(refusal.value)


def test_every_setting_can_be_set_in_one_place(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    places = {
        "settings": (schema["properties"]["settings"], SharedSettings),
        "api.settings": (schema["properties"]["api"]["properties"]["settings"], ApiSettings),
        "courier.settings": (schema["properties"]["courier"]["properties"]["settings"], CourierSettings),
        "workers.settings": (schema["definitions"]["workerSettings"], WorkerSettings),
    }

    for place, (found, program) in places.items():
        fields = set(program.model_fields) - (set() if program is SharedSettings else set(SharedSettings.model_fields))
        # A new setting: add `"its_name": {"$ref": "#/definitions/setting"}` there, or its name to OWN.
        assert set(found["properties"]) == fields - OWN, f"{place} in values.schema.json"
        assert found["additionalProperties"] is False


def test_nothing_in_the_schema_lets_an_unknown_value_pass(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    free = {"podAnnotations", "podLabels", "nodeSelector", "annotations", "affinity", "global", "valueFrom"}

    def check(part: Any, name: str) -> None:
        if isinstance(part, dict):
            if part.get("type") == "object" and name not in free and "properties" in part and name != "extraVolumes":
                assert part.get("additionalProperties") is False, name
            for key, value in part.items():
                if key not in ("if", "then", "else"):
                    check(value, key if key != "items" else name)

    check(schema, "")


def test_the_defaults_fit_the_schema_and_the_model_overrides_all_of_workers(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    values = read_values(chart / "values.yaml")

    assert set(schema["properties"]) - {"global"} == set(values)
    for program in ("api", "courier", "operator", "workers", "outputs"):
        assert set(schema["properties"][program]["properties"]) == set(values[program])
    # A service account is one of all workers.
    assert set(schema["definitions"]["model"]["properties"]) == {"model", "revision", *values["workers"]} - {
        "serviceAccount"
    }


def test_the_readme_lists_every_value_with_its_default(chart: Path) -> None:
    found = re.findall(r"^\| `([\w.]+)` \|(.*?)\|", (chart / "README.md").read_text(), re.MULTILINE)
    rows = {name: default.strip() for name, default in found}
    values = read_values(chart / "values.yaml")

    assert rows == dict(described(values, rows))


def described(values: Object, rows: dict[str, str], path: str = "") -> list[tuple[str, str]]:
    """Return each value's path and its default as the README writes it: a whole map, if the README has a row for it."""
    found = []
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and name not in rows:
            found += described(value, rows, f"{name}.")
        else:
            found.append((name, "" if value in ("", {}, [], None) else f"`{written(value)}`"))
    return found


def written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {written(one)}" for key, one in value.items())
    if isinstance(value, list):
        return f"[{', '.join(f'{{{written(one)}}}' if isinstance(one, dict) else written(one) for one in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_values_in_the_guide_work_together(repository: Path, render: Any) -> None:
    guide = (repository / "docs" / "kubernetes.md").read_text()
    values: Object = {}
    for block in re.findall(r"^```yaml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL):
        values = over(values, yaml.safe_load(block))

    rendered = render(values)

    named = {(kind, name) for kind, name in re.findall(r"(deployment|service)/(maskfleet[\w-]*)", guide)}
    rendered_names = {
        (one["kind"].lower(), one["metadata"]["name"].replace("shop-maskfleet", "maskfleet"))
        for one in rendered.objects
    }
    assert named
    assert named <= rendered_names
    assert [one["spec"]["minReplicaCount"] for one in rendered.of_kind("ScaledObject")] == [0]


def test_chart_and_package_have_one_version(chart: Path, repository: Path) -> None:
    described = read_values(chart / "Chart.yaml")
    version = re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)

    assert version
    assert str(described["appVersion"]) == version[1]
