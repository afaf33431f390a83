"""The chart: what it renders is accepted by Kubernetes and KEDA, safe, and understood by our programs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.schema.spec import EverythingJob
from maskfleet.jobs.settings import ApiSettings, CourierSettings, SharedSettings, WorkerSettings
from tests.deploy.chart import (
    KUBERNETES,
    NAMESPACE,
    RELEASE,
    Object,
    Rendered,
    container,
    environment,
    filled,
    keda_schemas,
    over,
    read_values,
)
from tests.maskfleet.test_compose import check_command

SETTINGS: dict[str, type[SharedSettings]] = {
    "api": ApiSettings,
    "courier": CourierSettings,
    "worker": WorkerSettings,
    "operator": SharedSettings,
}
#: Variables that are not ours, and who reads them.
FOREIGN = {
    "REDIS_PASSWORD": "the URL in MASKFLEET_REDIS_URL",
    "AWS_CA_BUNDLE": "boto3",
    "HF_HOME": "huggingface_hub",
    "HF_TOKEN": "huggingface_hub",
    "HOME": "libraries with a cache",
    "NUMBA_CACHE_DIR": "numba",
    "XDG_CACHE_HOME": "libraries with a cache",
}
#: Paths in variables that the programs write to.
WRITTEN = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "NUMBA_CACHE_DIR", "MASKFLEET_METRICS_DIR")
#: What the secrets hold, whatever their names.
SECRETS = {
    "MASKFLEET_WEBHOOK_MASTER_SECRETS": "whsec_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw",
    "MASKFLEET_WEBHOOK_SHARED_SECRETS": "whsec_MTExMTExMTExMTExMTExMTExMTExMTEx",
    "MASKFLEET_WEBHOOK_ENDPOINTS": "apiary:https://example.com/hook",
    "MASKFLEET_API_KEYS": "apiary:a-key",
}


def program(pod: Object) -> str:
    name: str = pod["metadata"]["labels"]["app.kubernetes.io/component"]
    return name


def secrets_of(pod: Object) -> dict[tuple[str, str], str]:
    """Return a value for every secret that a pod refers to."""
    found = {}
    for name, entry in environment(pod).items():
        source = entry.get("valueFrom", {}).get("secretKeyRef")
        if source:
            found[source["name"], source["key"]] = SECRETS.get(name, "0123456789abcdef")
    return found


def settings_of(pod: Object, monkeypatch: pytest.MonkeyPatch) -> Any:  # Any: of the pod's own program
    """Return the settings that a pod's program would read."""
    for name, value in filled(pod, secrets_of(pod), {"limits.cpu": "3", "requests.cpu": "2"}).items():
        if name.startswith("MASKFLEET_"):
            monkeypatch.setenv(name, value)
    return SETTINGS[program(pod)]()


def test_kubernetes_and_keda_accept_every_object(rendered: Rendered, repository: Path) -> None:
    keda = keda_schemas(repository / "tests" / "deploy" / "schemas")

    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"} <= {
        one["kind"] for one in rendered.objects
    }
    for one in rendered.objects:
        if one["kind"] in keda:
            assert not [error.message for error in keda[one["kind"]].iter_errors(one)], one["metadata"]["name"]
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(one, version, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered.objects]
    assert len(names) == len(set(names))


def test_every_container_is_locked_down(rendered: Rendered) -> None:
    for name, pod in rendered.pods():
        spec, security = pod["spec"], container(pod)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"].get("runAsUser") != 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    for account in rendered.of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not rendered.of_kind("Role") + rendered.of_kind("ClusterRole")


def test_every_container_has_requests_and_a_memory_limit(rendered: Rendered) -> None:
    for name, pod in rendered.pods():
        resources = container(pod)["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), name
        assert "memory" in resources["limits"], name


def test_what_the_programs_write_to_is_writable(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container(pod)["volumeMounts"]}
        writable = {
            path
            for path, mount in mounts.items()
            if not mount.get("readOnly") and {"emptyDir", "persistentVolumeClaim"} & volumes[mount["name"]].keys()
        }
        assert {mount["name"] for mount in mounts.values()} == volumes.keys()
        assert "/tmp" in writable  # noqa: S108 — the container's own
        for name in WRITTEN:
            value = environment(pod).get(name, {}).get("value")
            assert value is None or any(f"{value}/".startswith(f"{path}/") for path in writable), name


def test_every_program_has_probes_that_it_answers(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        if program(pod) == "operator":
            continue
        own = container(pod)
        ports = {port["name"]: port["containerPort"] for port in own["ports"]}
        for probe, where in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
            assert own[probe]["httpGet"]["path"] == where
            assert own[probe]["httpGet"]["port"] in ports
        if program(pod) == "api":
            assert own["args"][-1] == str(ports["http"])
        else:
            values = environment(pod)
            assert values["MASKFLEET_HEALTH_PORT"]["value"] == str(ports["health"])
            assert values["MASKFLEET_HEALTH_HOST"]["value"] == "0.0.0.0"  # noqa: S104 — the pod's


def test_every_command_is_one_of_the_command_line(rendered: Rendered) -> None:
    for _, pod in rendered.pods():
        if program(pod) == "operator":
            assert container(pod)["command"] == ["sleep", "infinity"]
            assert "livenessProbe" not in container(pod)
        else:
            assert "command" not in container(pod)
            check_command(container(pod)["args"])
            assert container(pod)["args"][0] == program(pod)


def test_every_variable_is_a_setting_of_its_program_and_valid(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pod in rendered.pods():
        fields = SETTINGS[program(pod)].model_fields
        with monkeypatch.context() as patch:
            for variable in environment(pod):
                known = variable.removeprefix("MASKFLEET_").lower() in fields
                assert (variable.startswith("MASKFLEET_") and known) or variable in FOREIGN, (name, variable)
            settings_of(pod, patch)


def test_all_programs_agree_on_what_they_share(rendered: Rendered) -> None:
    shared = {f"MASKFLEET_{name.upper()}" for name in SharedSettings.model_fields}
    own = {"MASKFLEET_REDIS_URL", "MASKFLEET_MODEL"}

    told = [
        {name: entry for name, entry in environment(pod).items() if name in shared - own} for _, pod in rendered.pods()
    ]

    assert all(one == told[0] for one in told)


def test_no_secret_is_written_into_an_object(rendered: Rendered) -> None:
    secret = {
        f"MASKFLEET_{name.upper()}"
        for settings in SETTINGS.values()
        for name, field in settings.model_fields.items()
        if "SecretStr" in str(field.annotation) or not field.repr
    }
    assert {"MASKFLEET_API_KEYS", "MASKFLEET_WEBHOOK_ENDPOINTS", "MASKFLEET_S3_SECRET_KEY"} <= secret

    assert not rendered.of_kind("Secret") + rendered.of_kind("ConfigMap")
    for _, pod in rendered.pods():
        for name, entry in environment(pod).items():
            if name in secret - {"MASKFLEET_REDIS_URL"} or name == "REDIS_PASSWORD":
                assert "secretKeyRef" in entry["valueFrom"]
        url = environment(pod)["MASKFLEET_REDIS_URL"]["value"]
        assert urlsplit(url.partition(",")[0]).password == "$(REDIS_PASSWORD)"
        assert list(environment(pod)).index("REDIS_PASSWORD") < list(environment(pod)).index("MASKFLEET_REDIS_URL")


def test_a_worker_is_killed_only_after_its_job_could_end_or_be_handed_back(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, pod in rendered.pods():
        grace_s = pod["spec"]["terminationGracePeriodSeconds"]
        if program(pod) == "worker":
            settings = settings_of(pod, monkeypatch)
            assert grace_s >= settings.drain_grace_s + settings.stop_grace_s + 10
        elif program(pod) == "courier":
            assert grace_s >= settings_of(pod, monkeypatch).webhook_timeout_s + 10


def test_by_default_a_worker_may_finish_any_job_of_the_default_time(render: Any) -> None:
    rendered = render("minimal-cpu")

    pod = rendered.named("Deployment", "shop-maskfleet-worker-base")["spec"]["template"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > EverythingJob.model_fields["run_timeout_s"].default


def test_selectors_find_their_pods(rendered: Rendered) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in rendered.pods()}

    def found(selector: dict[str, str]) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    for one in rendered.of_kind("Deployment"):
        assert found(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}
    for service in rendered.of_kind("Service"):
        assert found(service["spec"]["selector"]) == {service["metadata"]["name"]}
        (pod,) = (pod for name, pod in rendered.pods() if name == service["metadata"]["name"])
        ports = {port["name"] for port in container(pod)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in rendered.of_kind("PodDisruptionBudget"):
        assert found(budget["spec"]["selector"]["matchLabels"]) == {budget["metadata"]["name"]}
    for policy in rendered.of_kind("NetworkPolicy"):
        chosen = found(policy["spec"]["podSelector"]["matchLabels"])
        assert chosen
        assert len({labels[name]["app.kubernetes.io/component"] for name in chosen}) == 1
    for name, pod in rendered.pods():
        rendered.named("ServiceAccount", pod["spec"]["serviceAccountName"])
        for spread in pod["spec"].get("topologySpreadConstraints", ()):
            assert found(spread["labelSelector"]["matchLabels"]) == {name}
    for ingress in rendered.of_kind("Ingress"):
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        service = rendered.named("Service", path["backend"]["service"]["name"])
        assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


def test_who_scales_a_deployment_is_alone_in_that(rendered: Rendered) -> None:
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]
        for one in rendered.of_kind("ScaledObject") + rendered.of_kind("HorizontalPodAutoscaler")
    }

    for one in rendered.of_kind("Deployment"):
        # A number here would take back what the autoscaler set, at each upgrade.
        assert ("replicas" in one["spec"]) == (one["metadata"]["name"] not in scaled)
    assert scaled <= {one["metadata"]["name"] for one in rendered.of_kind("Deployment")}


def test_keda_reads_the_number_from_the_api_with_its_key(
    render: Any, shared_fields: dict[str, str], redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render("three-models-scaled")
    api = rendered.named("Deployment", "shop-maskfleet-api")["spec"]["template"]
    _, key = KeyStore(redis_client).create("operator", [Scope.FLEET])
    settings = settings_of(api, monkeypatch).model_copy(update=as_settings(shared_fields))
    client = create_app(settings).test_client()
    authentication = rendered.named("TriggerAuthentication", "shop-maskfleet-scaling")

    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "token", "name": "maskfleet-fleet", "key": "fleet-key"}
    ]
    for one in rendered.of_kind("ScaledObject"):
        (trigger,) = one["spec"]["triggers"]
        url = urlsplit(trigger["metadata"]["url"])
        worker = rendered.named("Deployment", one["spec"]["scaleTargetRef"]["name"])["spec"]["template"]
        headers = {"Host": url.netloc, "Authorization": f"Bearer {key.get_secret_value()}"}
        response = client.get(f"{url.path}?{url.query}", headers=headers)
        assert response.status_code == 200, response.text
        assert response.json["model"] == settings_of(worker, monkeypatch).model_name
        assert type(response.json[trigger["metadata"]["valueLocation"]]) is int
        assert (response.json["min_workers"], response.json["max_workers"]) == (
            one["spec"]["minReplicaCount"],
            one["spec"]["maxReplicaCount"],
        )
        assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
        assert trigger["metadata"]["authMode"] == "bearer"


def as_settings(fields: dict[str, str]) -> dict[str, object]:
    return {
        name: SecretStr(value) if "SecretStr" in str(ApiSettings.model_fields[name].annotation) else value
        for name, value in fields.items()
    }


def test_there_will_be_as_many_pods_as_the_api_asks_for(render: Any) -> None:
    rendered = render("three-models-scaled")

    for one in rendered.of_kind("ScaledObject"):
        (trigger,) = one["spec"]["triggers"]
        behavior = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert trigger["metricType"] == "AverageValue"
        target = float(trigger["metadata"]["targetValue"])
        for pods in range(1, 40):
            for desired in range(1, 40):
                tolerance = float(behavior["scaleUp" if desired > pods else "scaleDown"]["tolerance"])
                assert autoscaled(pods, desired, target, tolerance) == desired
        # KEDA starts the first pod above this, and so for 1.
        assert 0 <= float(trigger["metadata"]["activationTargetValue"]) < 1


def test_with_the_clusters_usual_tolerance_one_pod_more_would_not_be_started() -> None:
    assert autoscaled(11, 12, 1.0, 0.1) == 11


def autoscaled(pods: int, metric: float, target: float, tolerance: float) -> int:
    """Return how many pods the autoscaler wants for an external metric of the type AverageValue.

    Source: Kubernetes, pkg/controller/podautoscaler/replica_calculator.go, GetExternalPerPodMetricReplicas.
    """
    ratio = metric / (target * pods)
    return pods if 1 - tolerance <= ratio <= 1 + tolerance else math.ceil(metric / target)


def test_a_pod_with_several_workers_counts_as_so_many(render: Any, chart: Path) -> None:
    values = over(
        read_values(chart / "ci" / "three-models-scaled-values.yaml"), {"models": {"huge": {"slotsPerDevice": 3}}}
    )
    rendered = render(values)
    pod = rendered.named("Deployment", "shop-maskfleet-worker-huge")["spec"]["template"]
    (trigger,) = rendered.named("ScaledObject", "shop-maskfleet-worker-huge")["spec"]["triggers"]
    api = environment(rendered.named("Deployment", "shop-maskfleet-api")["spec"]["template"])

    assert environment(pod)["MASKFLEET_SLOTS_PER_DEVICE"]["value"] == trigger["metadata"]["targetValue"] == "3"
    assert "facebook/sam-vit-huge:24" in api["MASKFLEET_MODEL_MAX_WORKERS"]["value"].split(",")
    assert [autoscaled(2, desired, 3, 0) for desired in (5, 6, 7)] == [2, 2, 3]


def test_a_fleet_grows_fast_shrinks_slowly_and_stays_when_nothing_is_known(render: Any) -> None:
    rendered = render("three-models-scaled")
    huge = rendered.named("ScaledObject", "shop-maskfleet-worker-huge")["spec"]
    demo = rendered.named("ScaledObject", "shop-maskfleet-worker-demo")["spec"]
    behavior = huge["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]

    assert (huge["minReplicaCount"], huge["maxReplicaCount"]) == (0, 8)
    assert huge["fallback"] == {"failureThreshold": 4, "replicas": 0, "behavior": "currentReplicasIfHigher"}
    assert demo["fallback"]["replicas"] == 2
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]


def test_prometheus_is_asked_for_what_the_api_exports(render: Any, exported: dict[str, set[str]]) -> None:
    rendered = render("prometheus")
    (one,) = rendered.of_kind("ScaledObject")
    (trigger,) = one["spec"]["triggers"]
    (authentication,) = rendered.of_kind("TriggerAuthentication")

    asked = re.fullmatch(r'max\((\w+)\{model="([^"]+)"\}\)', trigger["metadata"]["query"])
    assert asked
    assert asked.groups() == ("maskfleet_desired_workers", "facebook/sam-vit-large")
    assert "model" in exported[asked[1]]
    assert trigger["metadata"]["threshold"] == "1"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"]["authModes"] == "bearer"
    assert authentication["spec"]["secretTargetRef"][0]["parameter"] == "bearerToken"
    behavior = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert "tolerance" not in behavior["scaleUp"] | behavior["scaleDown"]
    assert one["spec"]["minReplicaCount"] == one["spec"]["fallback"]["replicas"] == 2


def test_a_gpu_worker_gets_one_gpu_and_a_cpu_worker_as_many_threads_as_cpus(render: Any) -> None:
    gpu = render("one-gpu").named("Deployment", "shop-maskfleet-worker-huge")
    scaled = render("three-models-scaled")
    pods = {name.rpartition("-")[2]: pod for name, pod in scaled.pods()}

    assert container(gpu["spec"]["template"])["resources"]["limits"] == {
        "cpu": "3",
        "memory": "14Gi",
        "nvidia.com/gpu": 1,
    }
    assert container(gpu["spec"]["template"])["args"] == ["worker", "--devices", "all"]
    assert gpu["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    assert "MASKFLEET_TORCH_THREADS" not in environment(gpu["spec"]["template"])
    assert gpu["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0  # there may be no second GPU
    assert container(pods["demo"])["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert container(pods["base"])["args"] == ["worker", "--devices", "cpu"]
    assert not [name for name in container(pods["base"])["resources"]["limits"] if "/" in name]
    assert environment(pods["base"])["MASKFLEET_TORCH_THREADS"]["value"] == "2"
    cpu = render("minimal-cpu").named("Deployment", "shop-maskfleet-worker-base")["spec"]["template"]
    assert environment(cpu)["MASKFLEET_TORCH_THREADS"]["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"


def test_on_spot_nodes_a_job_is_handed_back_before_the_node_ends(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = render("three-models-scaled").named("Deployment", "shop-maskfleet-worker-demo")["spec"]["template"]

    settings = settings_of(pod, monkeypatch)

    assert settings.drain_grace_s + settings.stop_grace_s <= 25
    assert settings.model_name == "sam-demo"


def test_the_api_knows_all_models_and_the_default_one_is_first(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = render("three-models-scaled").named("Deployment", "shop-maskfleet-api")["spec"]["template"]

    assert settings_of(api, monkeypatch).model_names == ("facebook/sam-vit-base", "sam-demo", "facebook/sam-vit-huge")


def test_images_are_named_by_digest_where_there_is_one(render: Any) -> None:
    pinned, usual = render("one-gpu"), render("minimal-cpu")

    assert {container(pod)["image"] for _, pod in pinned.pods()} == {
        f"registry.example.com/maskfleet-api@sha256:{'1' * 64}",
        f"registry.example.com/maskfleet-worker@sha256:{'2' * 64}",
    }
    assert {container(pod)["image"] for _, pod in usual.pods()} == {"maskfleet-api:0.1.0", "maskfleet-worker:0.1.0"}
    assert pinned.named("Deployment", "shop-maskfleet-api")["spec"]["template"]["spec"]["imagePullSecrets"] == [
        {"name": "registry"}
    ]


def test_redis_is_reached_with_tls_and_s3_as_the_service_account(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = render("tls-irsa")

    for _, pod in rendered.pods():
        settings = settings_of(pod, monkeypatch)
        user = program(pod)
        assert (
            settings.redis_url.get_secret_value() == f"rediss://{user}:0123456789abcdef@master.redis.example.com:6380/0"
        )
        mounts = {mount["mountPath"]: mount["name"] for mount in container(pod)["volumeMounts"]}
        folder, _, file = settings.redis_ca.rpartition("/")
        (volume,) = (one for one in pod["spec"]["volumes"] if one["name"] == mounts[folder])
        assert volume["secret"] == {"secretName": "redis-ca", "items": [{"key": "ca.crt", "path": file}]}
        assert not settings.s3_access_key.get_secret_value()
        account = rendered.named("ServiceAccount", pod["spec"]["serviceAccountName"])
        assert account["metadata"]["annotations"] == {
            "eks.amazonaws.com/role-arn": f"arn:aws:iam::111122223333:role/maskfleet-{user}"
        }
    api = rendered.named("Deployment", "shop-maskfleet-api")["spec"]["template"]
    assert "masks.example.com" in settings_of(api, monkeypatch).trusted_hosts


def test_sentinels_and_an_s3_of_ones_own_are_reached(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = render("sentinels")

    for _, pod in rendered.pods():
        settings = settings_of(pod, monkeypatch)
        assert settings.redis_url.get_secret_value() == (
            f"sentinel://{program(pod)}:0123456789abcdef@one.redis:26379,two.redis:26379,three.redis:26379/mymaster/0"
        )
        assert settings.redis_sentinel_password.get_secret_value() == "0123456789abcdef"
        assert settings.s3_endpoint == "https://s3.data.svc:9443"
        assert environment(pod)["AWS_CA_BUNDLE"]["value"] == "/etc/maskfleet/s3-ca/ca.crt"
        assert "runAsUser" not in pod["spec"]["securityContext"]
    ports = {
        port["port"]
        for rule in rendered.named("NetworkPolicy", "shop-maskfleet-worker")["spec"]["egress"]
        for port in rule["ports"]
    }
    assert {6379, 26379, 9443, 53} <= ports


def test_numbers_arrive_as_they_were_written(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = render("everything")
    api = settings_of(rendered.named("Deployment", "shop-masks-api")["spec"]["template"], monkeypatch)
    worker_pod = rendered.named("Deployment", "shop-masks-worker-huge")["spec"]["template"]
    courier = rendered.named("Deployment", "shop-masks-courier")["spec"]["template"]

    assert (api.retention_s, api.max_image_bytes, api.max_record_bytes) == (1_209_600, 268_435_456, 1_073_741_824)
    assert environment(courier)["MASKFLEET_WEBHOOK_TIMEOUT_S"]["value"] == "7.5"
    assert environment(courier)["MASKFLEET_SWEEP_S"]["value"] == "0"
    assert len(api.allowed_buckets) == 2
    assert settings_of(worker_pod, monkeypatch).lease_s == 45


def test_what_a_model_says_goes_before_what_workers_say(render: Any) -> None:
    rendered = render("everything")
    huge, small = (
        rendered.named("Deployment", f"shop-masks-worker-{name}")["spec"]["template"] for name in ("huge", "small")
    )

    assert environment(huge)["MASKFLEET_EGRESS_PROBE_URL"]["value"] == "https://up.example.com"
    assert "MASKFLEET_EGRESS_PROBE_URL" not in environment(small)
    assert environment(huge)["MASKFLEET_LEASE_S"] == environment(small)["MASKFLEET_LEASE_S"]
    assert huge["metadata"]["labels"]["team"] == small["metadata"]["labels"]["team"] == "vision"
    claims = {
        name: volume["persistentVolumeClaim"]["claimName"]
        for name, pod in (("huge", huge), ("small", small))
        for volume in pod["spec"]["volumes"]
        if volume["name"] == "cache"
    }
    assert claims == {"huge": "hub-models", "small": "shop-masks-worker-small-models"}
    rendered.named("PersistentVolumeClaim", "shop-masks-worker-small-models")


def test_network_policies_let_through_what_is_needed_and_nothing_else(render: Any) -> None:
    rendered = render("everything")
    policies = {one["metadata"]["name"].rpartition("-")[2]: one["spec"] for one in rendered.of_kind("NetworkPolicy")}

    assert policies.keys() == {"api", "courier", "worker", "operator"}
    assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in policies.values())
    for name in ("courier", "operator"):
        assert policies[name]["ingress"] == []
    assert [rule["ports"] for rule in policies["worker"]["ingress"]] == [[{"port": "health"}]]
    http, metrics = policies["api"]["ingress"]
    namespaces = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in http["from"]]
    assert (http["ports"], namespaces) == ([{"port": "http"}], ["ingress-nginx", "keda"])
    assert metrics["ports"] == [{"port": "metrics"}]
    assert [rule["to"] for rule in policies["operator"]["egress"][1:]] == [
        [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}},
                "podSelector": {"matchLabels": {"app": "redis"}},
            }
        ],
        [{"ipBlock": {"cidr": "52.219.0.0/16"}}],
    ]
    for name in ("worker", "courier"):
        (public,) = (
            rule
            for rule in policies[name]["egress"]
            if rule.get("to", [{}])[0].get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
        )
        assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(
            public["to"][0]["ipBlock"]["except"]
        )
        assert [port["port"] for port in public["ports"]] == [443, 8443]


def test_the_api_answers_under_every_name_that_reaches_it(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = render("everything").named("Deployment", "shop-masks-api")["spec"]["template"]

    hosts = settings_of(pod, monkeypatch).trusted_hosts

    assert {
        f"{RELEASE}-masks-api",
        f"{RELEASE}-masks-api.{NAMESPACE}.svc",
        "masks.example.com",
        "10.244.0.0/16",
    } <= set(hosts)
    assert "127.0.0.0/8" in hosts
    assert settings_of(pod, monkeypatch).public_url == "https://masks.example.com"


def test_metrics_are_scraped_where_they_are_served(render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = render("everything")
    api, worker, courier = (
        rendered.named("Deployment", f"shop-masks-{name}")["spec"]["template"]
        for name in ("api", "worker-huge", "courier")
    )
    annotations = api["metadata"]["annotations"]

    assert settings_of(api, monkeypatch).metrics_bind == f"0.0.0.0:{annotations['prometheus.io/port']}"
    assert {"name": "metrics", "containerPort": int(annotations["prometheus.io/port"])} in container(api)["ports"]
    assert annotations["example.com/owner"] == "vision"
    port = worker["metadata"]["annotations"]["prometheus.io/port"]
    assert settings_of(worker, monkeypatch).health_port == int(port)
    assert worker["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert "annotations" not in courier["metadata"]
    for _, pod in render("sentinels").pods():
        assert "annotations" not in pod["metadata"]


def test_the_oldest_kubernetes_of_the_tests_is_the_charts(chart: Path) -> None:
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["kubeVersion"] == f">={KUBERNETES[0]}.0-0"


def test_the_notes_name_what_was_installed(rendered: Rendered) -> None:
    assert "{{" not in rendered.notes
    for name, pod in rendered.pods():
        if program(pod) == "worker":
            assert name in rendered.notes
    named = re.findall(r"(deployment|service)/([\w-]+)", rendered.notes)
    for kind, name in named:
        rendered.named(kind.capitalize(), name)


def test_the_redis_of_the_first_try_is_accepted_and_gets_the_passwords_it_needs(repository: Path) -> None:
    objects = list(yaml.safe_load_all((repository / "deploy" / "kubernetes" / "redis.yaml").read_text()))
    (redis,) = (one for one in objects if one["kind"] == "StatefulSet")
    pod = redis["spec"]["template"]
    script = (repository / "deploy" / "redis" / "start.sh").read_text()

    for one in objects:
        kubernetes_validate.validate(one, KUBERNETES[0], strict=True)
    assert set(re.findall(r"\$REDIS_PASSWORD_\w+", script)) == {f"${name}" for name in environment(pod)}
    assert container(pod)["command"][:2] == ["sh", "/maskfleet/start.sh"]
    assert container(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
