"""Which metrics exist, and which ones a PromQL expression reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

#: redis_exporter's, with the labels that we rely on.
OTHERS = {"redis_memory_used_bytes": {"instance"}, "redis_memory_max_bytes": {"instance"}}
#: Labels that Prometheus adds to each series.
ADDED = {"job", "instance", "pod", "namespace"}
_WORDS = {
    *("sum", "max", "min", "count", "avg", "by", "on", "and", "or", "unless", "absent", "time", "rate", "increase"),
    *("delta", "min_over_time", "max_over_time", "quantile_over_time", "histogram_quantile", "label_values"),
}


def series(exposition: str) -> dict[str, set[str]]:
    """Return every series' name and its labels, also of metrics that have no sample yet."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        found.setdefault(family.name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def of_workers(document: str) -> dict[str, set[str]]:
    """Return a worker's series and labels, from docs/operations.md; tests/worker/test_figures.py checks them."""
    found = {}
    row = r"^\| ((?:`maskfleet_worker_\w+`(?:, )?)+)(?: by ([\w, ]+?))? \|"
    for names, labels in re.findall(row, document, re.MULTILINE):
        for name in re.findall(r"maskfleet_worker_\w+", names):
            found[name] = set(re.findall(r"\w+", labels.replace(" and ", " ")))
    return found


def check_expression(expression: str, exported: Mapping[str, set[str]]) -> None:
    """Assert that an expression reads only what is exported, with labels that it has."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:maskfleet|redis)_\w+", bare))
    assert names, expression
    assert names <= exported.keys(), f"not exported: {names - exported.keys()}"
    labels = {
        *re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"\"", bare),
        *(word for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare) for word in re.findall(r"\w+", group)),
    }
    known = set().union(*(exported[name] or labels for name in names)) | ADDED
    assert labels <= known, f"{expression}: no label {labels - known}"
    words = set(re.findall(r"(?<![\w$.])[a-z_]+(?=\s*\()", bare)) - names
    assert words <= _WORDS, f"{expression}: is {words - _WORDS} a function? Then add it here."
