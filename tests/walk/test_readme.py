"""Run the README's commands as written.

Each command of each ``sh`` block is run, or listed below with the test that runs it.  A new command in the README
that is neither fails here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskfleet.stack.process import StackLine
from tests.conftest import WEBHOOK_SECRET
from tests.maskfleet.test_webhooks import BODY, OTHER_SECRET, signed

#: Commands that are not run here, by prefix, and why.
ELSEWHERE = {
    "make demo": "tests/maskfleet/test_demo.py runs what it runs",
    "make test": "it is what runs this",
    ".venv/bin/maskfleet up": "the fixture running_stack is such a process",
    "export MASKFLEET_API_URL=": "the test gives its own stack's values",
    ".venv/bin/maskfleet worker --devices all": "tests/worker/test_fleet.py, with a stand-in for NVML",
    "MASKFLEET_EGRESS_ALLOW_PRIVATE=1 .venv/bin/maskfleet up": "the fixture running_stack is such a process",
    ".venv/bin/maskfleet webhook listen": "tests/maskfleet/test_webhook_listen.py runs it",
    ".venv/bin/maskfleet webhook ping": "tests/maskfleet/test_webhook_commands.py runs it, with a receiver",
    "docker compose up": "tests/maskfleet/test_compose.py; there is no Docker engine to be had",
}
#: tests/maskfleet/test_up.py starts a stack so, with a folder in the place of the hub id.
MODEL_COMMAND = "MASKFLEET_MODEL=facebook/sam-vit-base .venv/bin/maskfleet up"


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme, flags=re.M | re.S)


def commands(block: str) -> Iterator[str]:
    """Yield the block's commands, continued lines joined, comments removed."""
    for line in block.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s{2,}#.*$", "", line).strip()
        if command:
            yield re.sub(r"\s+", " ", command)


def is_elsewhere(command: str) -> bool:
    return command == MODEL_COMMAND or any(command.startswith(beginning) for beginning in ELSEWHERE)


@pytest.fixture
def workplace(tmp_path: Path, repository: Path) -> Path:
    """A folder that looks like a clone after `make setup`."""
    (tmp_path / "examples").symlink_to(repository / "examples")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return tmp_path


def environment(stack: StackLine, demo_model: str) -> dict[str, str]:
    return os.environ | {
        "MASKFLEET_API_URL": stack.api_url,
        "MASKFLEET_API_KEY": stack.api_key,
        # `maskfleet keys` finds it in ./.maskfleet, where a user runs `maskfleet up`.
        "MASKFLEET_REDIS_URL": stack.redis_url,
        "MASKFLEET_MODEL": demo_model,
    }


def test_every_command_works_in_its_order(
    readme: str, running_stack: StackLine, workplace: Path, demo_model: str
) -> None:
    script = [command for block in blocks(readme, "sh") for command in commands(block) if not is_elsewhere(command)]

    answer = subprocess.run(
        ["bash", "-exuo", "pipefail", "-c", "\n".join(script)],
        cwd=workplace,
        env=environment(running_stack, demo_model),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert '"status":"succeeded"' in answer.stdout
    assert '"name":"overlay.png"' in answer.stdout
    assert (workplace / "masks-box" / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((workplace / "masks-batch" / "coco.json").read_text())["images"]) == 3
    assert (workplace / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((workplace / "masks" / "coco.json").read_text())["annotations"]) == 1


def test_the_python_snippet_works(readme: str, running_stack: StackLine, workplace: Path, demo_model: str) -> None:
    [snippet, _] = blocks(readme, "python")

    answer = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=workplace,
        env=environment(running_stack, demo_model),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("1 mask, predicted IoU 0.9")
    assert (workplace / "masks" / "coco.json").is_file()
    assert (workplace / "masks" / "overlay.png").is_file()


def test_the_receivers_snippet_takes_what_is_signed_and_nothing_else(
    readme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [_, snippet] = blocks(readme, "python")
    monkeypatch.setenv("WEBHOOK_SECRETS", f"{OTHER_SECRET},{WEBHOOK_SECRET}")
    names: dict[str, Callable[[bytes, dict[str, str]], int]] = {}

    exec(snippet, names)  # noqa: S102 - the document's own code

    assert names["receive"](BODY, signed()) == 204
    assert names["receive"](BODY + b" ", signed()) == 400


def test_another_model_is_one_setting(readme: str) -> None:
    assert MODEL_COMMAND in [command for block in blocks(readme, "sh") for command in commands(block)]


def test_every_named_file_is_there(readme: str, repository: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)

    assert [link for link in links if not (repository / link).exists()] == []
    assert len(links) > 10


def test_make_does_what_the_readme_says(repository: Path) -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert ".venv/bin/maskfleet demo" in shown
    assert ".venv/bin/python -m pytest" in shown


def test_the_table_of_parameters_is_the_models(readme: str) -> None:
    from maskfleet.jobs.schema.spec import EverythingParams

    table = dict(re.findall(r"^\| `(\w+)` \| ([\d./ ]+?) \|", readme, flags=re.M))

    def number(text: str) -> float:
        over, _, under = text.partition("/")
        return float(over) / float(under or 1)

    fields = EverythingParams.model_fields
    assert {name: number(text) for name, text in table.items()} == {
        name: field.default for name, field in fields.items() if isinstance(field.default, int | float)
    }
