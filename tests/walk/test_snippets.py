"""Run the documents' commands and programs as written.

Of the README, the guide and the pages for newcomers, each command of each ``sh`` block is run, or listed below with the
test that runs it.  A new command there that is neither fails here.  In all documents, shell, Python and JSON must
parse, and maskfleet's commands and options and all linked files must exist.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from maskfleet.cli.main import main
from maskfleet.stack.process import StackLine
from tests.conftest import WEBHOOK_SECRET
from tests.maskfleet.test_webhooks import BODY, OTHER_SECRET, signed

ROOT = Path(__file__).parents[2]
COMING_FROM = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/coming-from/*.md"))
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
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
    "docker compose up": "tests/containers runs it, where podman can be had; tests/maskfleet/test_compose.py reads it",
    "maskfleet batches create s3://": "tests/maskfleet/test_batch_sources.py runs it, with a bucket",
    "curl -s https://serverless.roboflow.com/": "another service's",
    # tests/maskfleet/test_up.py starts a stack so, with a folder in the place of the hub id.
    "MASKFLEET_MODEL=facebook/sam-vit-base .venv/bin/maskfleet up": "no hub is asked in tests",
}


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(block: str) -> Iterator[str]:
    """Yield the block's commands, continued lines joined, comments removed."""
    joined = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), block.replace("\\\n", " "))
    for line in joined.splitlines():
        command = re.sub(r"\s{2,}#.*$", "", line).strip()
        if command:
            yield re.sub(r"\s+", " ", command)


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(beginning) for beginning in ELSEWHERE)


def programs(text: str) -> list[str]:
    """Return the Python blocks that are whole programs against a server."""
    return [
        block
        for block in blocks(text, "python")
        if "MASKFLEET_API_URL" in block and not re.search(r"^def ", block, flags=re.M)
    ]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder that looks like a clone after `make setup`."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
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


def run(command: list[str], place: Path, stack: StackLine, demo_model: str) -> str:
    """Return what a command prints, once it has succeeded."""
    done = subprocess.run(
        command,
        cwd=place,
        env=environment(stack, demo_model),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def walk(document: str, place: Path, stack: StackLine, demo_model: str) -> str:
    script = [
        command for block in blocks(read(document), "sh") for command in commands(block) if not is_elsewhere(command)
    ]
    return run(["bash", "-exuo", "pipefail", "-c", "\n".join(script)], place, stack, demo_model) if script else ""


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_readmes_recipes_work(running_stack: StackLine, workplace: Path, demo_model: str) -> None:
    walk("README.md", workplace, running_stack, demo_model)
    assert is_png(workplace / "masks" / "overlay.png")
    [program] = programs(read("README.md"))

    printed = run([sys.executable, "-c", program], workplace, running_stack, demo_model)

    assert printed.startswith("1 mask, predicted IoU 0.9")
    assert is_png(workplace / "masks" / "overlay.png")
    assert len(json.loads((workplace / "masks" / "coco.json").read_text())["annotations"]) == 1
    assert len(json.loads((workplace / "masks-batch" / "coco.json").read_text())["images"]) == 4


def test_the_guides_commands_work(running_stack: StackLine, workplace: Path, demo_model: str) -> None:
    walk("docs/guide.md", workplace, running_stack, demo_model)

    assert is_png(workplace / "masks-box" / "overlay.png")
    assert len(json.loads((workplace / "masks-batch" / "coco.json").read_text())["images"]) == 3


def test_a_job_with_curl_works(running_stack: StackLine, workplace: Path, demo_model: str) -> None:
    printed = walk("docs/api.md", workplace, running_stack, demo_model)

    assert '"status":"succeeded"' in printed
    assert '"name":"overlay.png"' in printed
    assert is_png(workplace / "overlay.png")


def test_the_commands_for_webhooks_work(running_stack: StackLine, workplace: Path, demo_model: str) -> None:
    walk("docs/webhooks.md", workplace, running_stack, demo_model)


@pytest.mark.parametrize("document", COMING_FROM)
def test_what_another_interface_does_is_done_as_its_page_says(
    document: str, running_stack: StackLine, workplace: Path, demo_model: str
) -> None:
    printed = walk(document, workplace, running_stack, demo_model)
    ours = [block for block in blocks(read(document), "python") if "maskfleet" in block]

    for program in programs(read(document)):
        printed += run([sys.executable, "-c", program], workplace, running_stack, demo_model)

    assert ours == programs(read(document))
    assert re.search(r"^\d+ \[|^\[|\"succeeded\"", printed, flags=re.M), printed


def test_the_receivers_program_takes_what_is_signed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    [program] = blocks(read("docs/webhooks.md"), "python")
    monkeypatch.setenv("WEBHOOK_SECRETS", f"{OTHER_SECRET},{WEBHOOK_SECRET}")
    names: dict[str, Callable[[bytes, dict[str, str]], int]] = {}

    exec(program, names)  # noqa: S102 - the document's own code

    assert names["receive"](BODY, signed()) == 204
    assert names["receive"](BODY + b" ", signed()) == 400


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets_parse(document: str) -> None:
    text = read(document)
    # What is to be filled in stands as `…`, which a shell takes for a word.
    script = "\n".join(blocks(text, "sh"))

    for block in blocks(text, "python"):
        ast.parse(block)
    for block in blocks(text, "json"):
        for line in [block] if block.count("\n{") == 0 else block.splitlines():
            json.loads(line)
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(document: str) -> None:
    for block in blocks(read(document), "sh"):
        for command in commands(block):
            for words in invocations(command):
                parse(words)


def invocations(command: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of maskfleet in a command: after variables, or in a container."""
    for found in re.finditer(r"(?:^(?:[A-Z_]+=\S+ )*|-- |\$\()(?:\S*/)?maskfleet ([^|)]+)", command):
        yield shlex.split(found[1], comments=True)


def parse(words: list[str]) -> None:
    """Parse a call of maskfleet without running it.  Raises click.UsageError for what does not exist."""
    command: click.Command = main
    context = click.Context(main, info_name="maskfleet")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_parser(context).parse_args(words)


def test_what_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(["submit", "bee.jpg", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["no-such-command"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_file_is_there(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(document), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)

    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_document_is_in_the_sites_navigation() -> None:
    text = read("mkdocs.yml")

    # docs/site.py adds the decisions.
    pages = [name.removeprefix("docs/") for name in DOCUMENTS if name.startswith("docs/") and "/decisions/" not in name]
    assert [page for page in pages if not re.search(rf"[-:] {page}$", text, flags=re.M)] == []


def test_the_readme_is_short() -> None:
    assert 60 <= read("README.md").count("\n") <= 90


def test_make_does_what_the_readme_says() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert ".venv/bin/maskfleet demo" in shown
    assert ".venv/bin/python -m pytest" in shown


def test_the_table_of_parameters_is_the_models() -> None:
    from maskfleet.jobs.schema.spec import EverythingParams

    table = dict(re.findall(r"^\| `(\w+)` \| ([\d./ ]+?) \|", read("docs/api.md"), flags=re.M))

    fields = EverythingParams.model_fields
    assert {name: number(text) for name, text in table.items()} == {
        name: field.default for name, field in fields.items() if type(field.default) in (int, float)
    }


def number(text: str) -> float:
    over, _, under = text.partition("/")
    return float(over) / float(under or 1)


def test_the_defaults_that_others_have_are_said_as_ours_are() -> None:
    from maskfleet.jobs.schema.spec import EverythingParams

    fields = EverythingParams.model_fields
    for document in ("docs/coming-from/segment-anything.md", "docs/coming-from/replicate.md"):
        for told, ours in re.findall(r"^\| `\w+` ([\d./ ]+?) \| `(\w+)` \|", read(document), flags=re.M):
            assert number(told) == fields[ours].default, f"{document}: {ours}"


def test_the_table_of_calls_is_the_services(shared_fields: dict[str, str]) -> None:
    from maskfleet.api.app import create_app
    from maskfleet.jobs.settings import ApiSettings

    client = create_app(ApiSettings(**shared_fields)).test_client()
    paths: dict[str, dict[str, Any]] = client.get("/openapi.json").get_json()["paths"]  # Any: an operation
    served = {
        f"{method.upper()} {re.sub('{[a-z]+_id}', '{id}', path)}"
        for path, operations in paths.items()
        for method in operations
        if path.startswith("/v1/")
    }

    section = read("docs/api.md").partition("## Calls")[2].partition("\n## ")[0]
    told = set(re.findall(r"`((?:GET|POST|DELETE) /v1/[^`]+)`", section))

    assert told == served
