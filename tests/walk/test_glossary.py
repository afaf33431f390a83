"""docs/glossary.md: each word stands in the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| \[(.+)\]\(\.\./(.+)\) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "glossary.md").read_text())


def words(entry: str) -> list[str]:
    """The words of an entry, without what tells two of one name apart."""
    return re.sub(r" \(.*\)", "", entry).split(", ")


@pytest.mark.parametrize(("entry", "shown", "path"), ROWS, ids=[row[0] for row in ROWS])
def test_a_word_stands_in_the_file_that_it_names(entry: str, shown: str, path: str) -> None:
    text = (ROOT / path).read_text()

    found = [re.search(word.replace(" ", "[ _]?"), text, re.IGNORECASE) for word in words(entry)]

    assert shown == path
    assert any(found)


def test_the_words_are_in_their_order_and_none_stands_twice() -> None:
    entries = [row[0].casefold() for row in ROWS]

    assert len(ROWS) > 30
    assert entries == sorted(set(entries))
