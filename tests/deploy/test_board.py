"""The Grafana board: it can be imported, its panels do not overlap, and it shows what the API exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.metrics import check_expression

PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def board(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "deploy" / "grafana" / "maskfleet.json").read_text())
    return found


def expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_the_board_can_be_imported_anywhere(board: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}

    assert "id" not in board  # Grafana gives one
    assert board["uid"] == "maskfleet"
    assert board["schemaVersion"] >= 36  # from here on a data source is an object
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for owner in (*board["panels"], *(target for panel in board["panels"] for target in panel.get("targets", ()))):
        if owner.get("type") != "row":
            assert owner["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(board))))
    assert used == {"model", "__rate_interval"}


def test_panels_have_titles_units_and_places_of_their_own(board: dict[str, Any]) -> None:
    panels = board["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} == {"row", "stat", "timeseries"}
    for panel in panels:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert one["x"] + one["w"] <= 24
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_every_panel_shows_what_is_exported(board: dict[str, Any], exported: dict[str, set[str]]) -> None:
    for expression in expressions(board):
        check_expression(expression, exported)
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert asked
            assert asked[2] in exported[asked[1]]


def test_everything_of_ours_that_is_worth_watching_is_shown(
    board: dict[str, Any], exported: dict[str, set[str]]
) -> None:
    shown = set(re.findall(r"maskfleet_\w+", " ".join(expressions(board))))
    of_families = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in exported}
    # An alert's, and the sum of what is shown by model.
    elsewhere = {"maskfleet_ledger_lost_timestamp_seconds", "maskfleet_jobs_processing"}

    missing = of_families - {re.sub(r"_(bucket|total)$", "", name) for name in shown} - elsewhere
    assert not {name for name in missing if name.startswith("maskfleet_")}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
def test_prometheus_accepts_every_expression(board: dict[str, Any], tmp_path: Path) -> None:
    assert PROMTOOL is not None
    rules = [
        {"record": f"board:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$model", ".*")}
        for number, text in enumerate(expressions(board))
    ]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))

    done = subprocess.run([PROMTOOL, "check", "rules", tmp_path / "board.yml"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
