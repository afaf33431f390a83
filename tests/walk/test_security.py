"""docs/security.md is accurate: every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def test_the_tests_that_cover_the_threats_exist(repository: Path) -> None:
    document = (repository / "docs" / "security.md").read_text()
    rows = [row for row in document.splitlines() if row.startswith("| ") and not row.startswith("| threat ")]

    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for path, name in named:
            tree = ast.parse((repository / path).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert functions if not name else name in functions, f"{path}::{name}"
