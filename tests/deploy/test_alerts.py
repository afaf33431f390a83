"""The alerts: Prometheus' own tool accepts them, each fires when it should, and each has a page to turn to."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.metrics import OTHERS, check_expression

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")


@pytest.fixture(scope="module")
def path(repository: Path) -> Path:
    return repository / "deploy" / "prometheus" / "alerts.yml"


@pytest.fixture(scope="module")
def alerts(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@needs_promtool
def test_prometheus_accepts_the_rules(path: Path) -> None:
    promtool("check", "rules", path)


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before(repository: Path) -> None:
    promtool("test", "rules", repository / "tests" / "deploy" / "alerts_test.yml")


def test_every_alert_is_tested_both_ways(alerts: list[dict[str, Any]], repository: Path) -> None:
    tests = yaml.safe_load((repository / "tests" / "deploy" / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]

    assert {case["alertname"] for case in cases if "exp_alerts" in case} == {rule["alert"] for rule in alerts}


def test_every_alert_asks_for_what_is_exported(alerts: list[dict[str, Any]], exported: dict[str, set[str]]) -> None:
    for rule in alerts:
        check_expression(rule["expr"], exported | OTHERS)


def test_every_alert_says_how_bad_it_is_and_where_to_read_on(alerts: list[dict[str, Any]], repository: Path) -> None:
    document = (repository / "docs" / "operations.md").read_text()
    section = document.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    pages = dict(re.findall(r"^### (.+)\n(.+)$", section, re.MULTILINE))
    anchors = {anchor(title): text for title, text in pages.items()}

    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        where, _, found = rule["annotations"]["runbook"].partition("#")
        assert where == "docs/operations.md"
        assert f"`{rule['alert']}`" in anchors[found], rule["alert"]
    assert anchors.keys() == {rule["annotations"]["runbook"].partition("#")[2] for rule in alerts}


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
