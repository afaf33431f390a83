"""docs/ledger.md, checked against the fields of a ledger with something of everything."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest
import redis

from tests.jobs.full_ledger import TENANT, FullLedger

PAGE = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
TABLE = re.compile(r"^### (\S+)\n\n\| field .*\n\|---.*\n((?:\| .*\n)+)", re.MULTILINE)
DESCRIBED = {name: re.findall(r"^\| `(\w+)` \| \S", rows, re.MULTILINE) for name, rows in TABLE.findall(PAGE)}


#: Before the first table of fields: keys without an expiry.
LASTING = re.findall(r"`(mf:[^`]+)`", PAGE[PAGE.index("## Keys without") : PAGE.index("### mf:job")])


@pytest.fixture
def found(redis_client: redis.Redis) -> dict[str, set[str]]:
    """The fields of each kind of key that has any: of hashes, and of lists of JSON objects."""
    FullLedger(redis_client).fill()
    kinds = {name: re.compile(re.sub(r"\\{\w+\\}", "[^:]+", re.escape(name))) for name in DESCRIBED}
    fields: dict[str, set[str]] = defaultdict(set)
    for key in cast("list[str]", redis_client.keys("mf:*")):
        name = next((name for name, form in kinds.items() if form.fullmatch(key)), key)
        match redis_client.type(key):
            case "hash":
                fields[name] |= set(cast("dict[str, str]", redis_client.hgetall(key)))
            case "list" if name in DESCRIBED:
                for entry in cast("list[str]", redis_client.lrange(key, 0, -1)):
                    fields[name] |= set(json.loads(entry))
    # Their fields are the names of queues and counters, and times.
    named = ("mf:totals", f"mf:bytes:{TENANT}")
    return {name: of for name, of in fields.items() if name not in named}


def test_each_record_that_has_fields_is_described(found: dict[str, set[str]]) -> None:
    assert found.keys() == DESCRIBED.keys()


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_record_has_the_fields_that_are_described_and_no_other(name: str, found: dict[str, set[str]]) -> None:
    assert sorted(DESCRIBED[name]) == sorted(found[name])


def test_each_key_without_an_expiry_is_justified(redis_client: redis.Redis) -> None:
    FullLedger(redis_client).fill()
    forms = {name: re.compile(re.sub(r"\\{\w+\\}", "[^:]+", re.escape(name))) for name in LASTING}
    lasting = [key for key in cast("list[str]", redis_client.keys("mf:*")) if redis_client.ttl(key) == -1]

    met = {key: {name for name, form in forms.items() if form.fullmatch(key)} for key in lasting}

    assert {key for key, names in met.items() if not names} == set()
    # The ledger's API key expires.
    assert set(LASTING) - {name for names in met.values() for name in names} <= {"mf:key:{id}"}
