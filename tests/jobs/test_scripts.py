"""The headers of the Lua scripts, checked against what the scripts do."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from maskfleet.jobs.ledger.connection import SCRIPTS as FOLDER, script_text

SCRIPTS = {path.name.removesuffix(".lua"): path.read_text() for path in FOLDER.iterdir()}
#: Required by other scripts; no program runs these by themselves.
PARTS = ("keys", "bytes", "webhooks", "batches", "turns", "jobs")
#: Scripts that a full Redis refuses: those that add data.
TAKE_IN = {"create", "ping", "schema"}


def required(name: str) -> list[str]:
    found = re.search(r"^-- requires: (.+)$", SCRIPTS[name], re.MULTILINE)
    return found[1].split(", ") if found else []


def defined(name: str) -> set[str]:
    """Return the names that a script defines for those that require it."""
    functions = re.findall(r"^local function (\w+)", SCRIPTS[name], re.MULTILINE)
    constants = re.findall(r"^local ([A-Z][A-Z_, ]*) =", SCRIPTS[name], re.MULTILINE)
    return {*functions, *(one for line in constants for one in line.split(", "))}


def renamed(name: str) -> set[str]:
    """Return all names that a script shadows."""
    locals_ = re.findall(r"local ([\w, ]+?)(?: =|$)|for ([\w, ]+) (?:=|in)|function \w*\(([\w, ]*)\)", SCRIPTS[name])
    functions = re.findall(r"local function (\w+)", SCRIPTS[name])
    return {*functions, *(one for found in locals_ for names in found for one in names.split(", "))}


def used(name: str) -> set[str]:
    code = re.sub(r"'[^'\n]*'", "''", re.sub(r"--.*", "", SCRIPTS[name]))
    return set(re.findall(r"\w+", code))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_requires_what_it_uses_and_nothing_else(name: str) -> None:
    stands_on = [part for part in PARTS if part != name and defined(part) & used(name)]

    assert required(name) == stands_on


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_hides_nothing_that_it_stands_on(name: str) -> None:
    given = {one for part in PARTS if part != name for one in defined(part)}

    assert renamed(name) & given == set()


@pytest.mark.parametrize("name", PARTS)
def test_no_part_stands_on_a_later_one(name: str) -> None:
    assert set(required(name)) <= set(PARTS[: PARTS.index(name)])


def test_a_script_comes_after_all_that_it_stands_on_each_once() -> None:
    text = script_text("claim")

    places = [text.index(SCRIPTS[part]) for part in PARTS]
    own = SCRIPTS["claim"].removeprefix("#!lua flags=allow-oom\n")
    assert places == sorted(places)
    assert text.endswith(own)
    assert len(text) == sum(len(SCRIPTS[part]) for part in (*PARTS, "claim"))
    assert text.startswith("#!lua flags=allow-oom\n")


def test_a_full_redis_lets_through_all_that_takes_nothing_in() -> None:
    let_through = {name for name in SCRIPTS if script_text(name).startswith("#!lua flags=allow-oom\n")}

    assert let_through == set(SCRIPTS) - TAKE_IN - set(PARTS)


def test_each_key_is_spelled_once_and_in_one_file() -> None:
    spelled = {name: Counter(re.findall(r"'(mf:[^']*)'", text)) for name, text in SCRIPTS.items()}

    assert {name for name, keys in spelled.items() if keys} == {"keys"}
    assert set(spelled["keys"].values()) == {1}
