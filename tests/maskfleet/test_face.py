"""What ``maskfleet`` exports is all there, described, and costs nothing until it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import maskfleet


@pytest.mark.parametrize("name", maskfleet.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(maskfleet, name) is getattr(import_module(maskfleet._MODULE_OF[name]), name)
    assert name in dir(maskfleet)


def test_type_checkers_read_the_same_names_from_the_same_modules() -> None:
    imports = [
        node for node in ast.walk(ast.parse(Path(maskfleet.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]

    typed = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}

    assert typed == maskfleet._MODULE_OF


def test_the_names_are_those_of_their_page(repository: Path) -> None:
    rows = [line.split("|")[1] for line in (repository / "docs" / "python.md").read_text().splitlines() if "|" in line]

    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert described == set(maskfleet.__all__)


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        maskfleet.Cleint  # noqa: B018 - to see it fail


def test_the_package_itself_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import maskfleet; print(*set(sys.modules) - before)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {name.partition(".")[0] for name in loaded} <= {"maskfleet", "importlib", "typing", *sys.stdlib_module_names}
    assert not [name for name in loaded if name.startswith("maskfleet.")]


def test_a_client_needs_little_to_start() -> None:
    code = """
import sys
before = set(sys.modules)
from maskfleet import Client
Client("http://127.0.0.1:8000", "key")
print(*set(sys.modules) - before)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    packages = {name.partition(".")[0] for name in loaded}
    assert packages.isdisjoint({"numpy", "PIL", "pandas", "supervision", "torch", "httpx2", "asyncio", "flask"})
    assert len(loaded) < 450  # 341 when this was written, most of them of requests and pydantic
