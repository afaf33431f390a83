"""The chart, rendered by Helm's own code, and what Kubernetes and KEDA accept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Object = dict[str, Any]

RELEASE = "shop"
NAMESPACE = "vision"
#: Why the chart cannot be rendered here.
NO_HELM = "helm-python-sdk has no wheel for this machine"
#: The sets of values in the chart's folder ci.
SETS = ("minimal-cpu", "one-gpu", "three-models-scaled", "prometheus", "tls-irsa", "sentinels", "everything")
#: The oldest Kubernetes that the chart allows, and the newest whose schemas are known.
KUBERNETES = ("1.29", "1.37")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one set of values becomes."""

    objects: tuple[Object, ...]
    notes: str

    def of_kind(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def named(self, kind: str, name: str) -> Object:
        (found,) = (one for one in self.of_kind(kind) if one["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield the name of each Deployment, and its pods' template."""
        for one in self.of_kind("Deployment"):
            yield one["metadata"]["name"], one["spec"]["template"]


def container(pod: Object) -> Object:
    (found,) = pod["spec"]["containers"]
    assert "initContainers" not in pod["spec"]
    return dict(found)


def environment(pod: Object) -> dict[str, Object]:
    """Return the variables of a pod's container, by name; each is set once."""
    entries = container(pod)["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return {entry["name"]: entry for entry in entries}


def filled(pod: Object, secrets: Mapping[tuple[str, str], str], fields: Mapping[str, str]) -> dict[str, str]:
    """Return a container's environment as the kubelet would fill it in."""
    values: dict[str, str] = {}
    for name, entry in environment(pod).items():
        if "value" in entry:
            values[name] = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], entry["value"])
        elif "secretKeyRef" in entry["valueFrom"]:
            source = entry["valueFrom"]["secretKeyRef"]
            values[name] = secrets[source["name"], source["key"]]
        else:
            values[name] = fields[entry["valueFrom"]["resourceFieldRef"]["resource"]]
    return values


def read_values(path: Path) -> Object:
    found: Object = yaml.safe_load(path.read_text())
    return found


def keda_schemas(folder: Path) -> dict[str, Draft202012Validator]:
    """Return a validator for each of KEDA's kinds, which refuses unknown fields."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for definition in yaml.safe_load_all(path.read_text()):
            (version,) = definition["spec"]["versions"]
            found[definition["spec"]["names"]["kind"]] = Draft202012Validator(
                closed(version["schema"]["openAPIV3Schema"])
            )
    return found


def closed(schema: Any) -> Any:  # Any: a part of a JSON schema
    """Return a schema that refuses the fields that Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def over(below: Object, above: Object) -> Object:
    """Lay one set of values over another, as Helm does."""
    found = deepcopy(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = over(old, value) if isinstance(old, dict) and isinstance(value, dict) else deepcopy(value)
    return found
