"""What `pip install maskfleet` brings along, and that it works where the repository is not.

Nothing is fetched: what the package needs is taken from the environment that runs the tests.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click
import pytest
from packaging.requirements import Requirement

from maskfleet.cli.extras import EXTRAS, naming_extras
from maskfleet.cli.main import COMMANDS, main

#: Top-level folders that the package once had; a project may well have folders of these names.
FOREIGN = ("api", "jobs", "worker")
#: The environment that runs the tests.
SITE_PACKAGES, SCRIPTS = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("scripts"))
#: What a command is called with to come so far that it lacks something: a package, or a server.
ARGUMENTS = {
    **{name: [] for name in EXTRAS},
    "segment": ["photo.png", "--box", "304,14,366,73"],
    "keys": ["list"],
    "batches": ["show", "batch_1"],
    "ledger": ["upgrade"],
    "submit": ["photo.png"],
    "batch": ["photo.png"],
    "raster": ["photo.png"],
    "upload": ["photo.png"],
    "embed": ["photo.png"],
    "export": ["job_1", "--outputs", "svg"],
    "refilter": ["job_1", "--pred-iou-thresh", "0.9"],
    "jobs": [],
    "models": [],
    "completion": ["bash"],
    "webhook": ["ping"],
    "plan": ["--deadline", "10m"],
    "token": [],
    "top": [],
}

USE = """
import json, sys
from maskfleet import Client
up = json.loads(sys.argv[1])
with Client(up["api_url"], up["api_key"]) as client:
    job = client.submit(photo=sys.argv[2], mode="box", prompts=[{"box": [304, 14, 366, 73]}])
    job = client.wait(job.id, timeout_s=120)
    print(job.status, job.model, job.result and job.result.masks)
"""


#: Runs each command in a copy of a process that has imported the client: what a command imports besides, it alone has.
EACH = """
import json, os, sys, tempfile
import maskfleet.cli.jobs
from maskfleet.cli.main import main
ended = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["maskfleet", name, *arguments]
            main(prog_name="maskfleet")  # exits
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended[name] = [code, *(file.seek(0) or file.read() for file in (out, err))]
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Built(NamedTuple):
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


class Installed(NamedTuple):
    """An environment with the package, and a folder to run it in that has packages of the names FOREIGN."""

    environment: Path
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """A command that finds the folder's packages first, if anything looks for them."""
        return [str(self.environment / "bin" / "python"), *arguments]

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**kept, "PATH": f"{self.environment / 'bin'}:{SCRIPTS}:{os.environ['PATH']}"}

    @property
    def package(self) -> Path:
        return next((self.environment / "lib").glob("python*/site-packages")) / "maskfleet"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, which is what the images are given."""
    copy = tmp_path_factory.mktemp("source")
    for line in (repository / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            copy_kept(repository / line[1:], copy / line[1:])
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out, unpacked = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("sdist")
    wheel, sdist = build("wheel", source, out), build("sdist", source, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    return Built(wheel, sdist, build("wheel", root, tmp_path_factory.mktemp("dist-of-sdist")))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, with every package that the tests have."""
    made = install(built.wheel, tmp_path_factory.mktemp("installed"))
    # Of a folder that a .pth names no .pth files are read: so the package that the tests themselves run is not found.
    (made.package.parent / "packages.pth").write_text(f"{SITE_PACKAGES}\n")
    return made


@pytest.fixture(scope="module")
def client_only(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of the source distribution, with what it needs without an extra, and nothing else."""
    made = install(built.wheel_of_sdist, tmp_path_factory.mktemp("client-only"))
    site = made.package.parent
    for name in needed(metadata.Distribution.at(next(site.glob("maskfleet-*.dist-info")))):
        for entry in top_level(metadata.distribution(name)):
            if not (site / entry).exists():
                (site / entry).symlink_to(SITE_PACKAGES / entry)
    return made


def test_all_that_is_installed_lies_under_one_name(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {PurePosixPath(name) for name in wheel.namelist()}

    assert {name.parts[0].partition("-")[0] for name in names} == {"maskfleet"}
    inside = {str(name.relative_to("maskfleet")) for name in names if name.parts[0] == "maskfleet"}
    assert inside > {
        *("py.typed", "cli/main.py", "client/client.py", "stack/stack.py", "api/app.py", "worker/segment.py"),
        *("jobs/ledger/lua/create.lua", "api/static/swagger-ui/swagger-ui-bundle.js", "api/static/swagger-ui/LICENSE"),
        *("data/coins.png", "data/sam-demo/model.safetensors", "data/sam-demo/config.json"),
    }


def test_every_file_of_the_source_is_installed(built: Built, source: Path) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        inside = {name for name in wheel.namelist() if name.startswith("maskfleet/")}

    there = {str(path.relative_to(source)) for path in walk(source / "maskfleet")}
    assert inside == there


def test_the_source_distribution_makes_the_same_wheel(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_a_copy_that_lost_its_symlinks_is_not_built(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, symlinks=True)
    links = [path for path in copy.rglob("*") if path.is_symlink()]
    for link in links:  # as pip unpacks a .zip
        target = str(link.readlink())
        link.unlink()
        link.write_text(target)

    refused = run_backend("wheel", copy, tmp_path)

    assert len(links) >= 5
    assert refused.returncode != 0
    assert "has lost its symlinks" in refused.stderr
    assert list(tmp_path.glob("*.whl")) == []


def test_the_client_is_imported_past_folders_of_the_same_names(installed: Installed) -> None:
    ran = installed.run("-c", "import maskfleet; print(maskfleet.Client.__module__, maskfleet.__file__)")

    assert ran.stdout.split() == ["maskfleet.client.client", str(installed.package / "__init__.py")], ran.stderr


def test_the_whole_service_runs_from_what_was_installed(installed: Installed) -> None:
    with running_up(installed) as line:
        ran = installed.run("-c", USE, line, str(installed.package / "data" / "coins.png"))
        listed = installed.run("-m", "maskfleet", "keys", "list")

    assert ran.stdout.split() == ["succeeded", "sam-demo", "1"], ran.stderr
    assert listed.returncode == 0, listed.stderr


def test_a_photograph_is_segmented_by_what_was_installed(installed: Installed) -> None:
    photo = str(installed.package / "data" / "coins.png")

    ran = installed.run("-m", "maskfleet", "segment", photo, "--box", "304,14,366,73", "--out", "masks")

    assert ran.stdout.startswith("1 mask on 384×303 pixels"), ran.stderr
    assert json.loads((installed.folder / "masks" / "coco.json").read_text())["annotations"]


def test_the_client_alone_has_the_whole_face_and_no_part_of_the_service(client_only: Installed) -> None:
    ran = client_only.run("-c", "import sys; from maskfleet import *; import maskfleet.cli.jobs; print(*sys.modules)")

    assert ran.returncode == 0, ran.stderr
    packages = {name.partition(".")[0] for name in ran.stdout.split()}
    assert {"pydantic", "requests", "standardwebhooks"} < packages
    assert packages.isdisjoint(
        {"flask", "torch", "numpy", "celery", "kombu", "boto3", "botocore", "redis", "structlog", "pydantic_settings"}
    )


@pytest.fixture(scope="module")
def ended(client_only: Installed) -> dict[str, Ended]:
    """How each command ends that is run with the client alone."""
    (client_only.folder / "photo.png").write_bytes((client_only.package / "data" / "coins.png").read_bytes())
    ran = client_only.run("-c", EACH, json.dumps({name: ARGUMENTS.get(name, ["job_1"]) for name in COMMANDS}))
    assert ran.returncode == 0, ran.stderr
    return {name: Ended(*parts) for name, parts in json.loads(ran.stdout).items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_with_the_client_alone_a_command_does_its_work_or_says_what_it_needs(
    ended: dict[str, Ended], name: str
) -> None:
    ran = ended[name]

    if name == "completion":
        assert ran.returncode == 0, ran.stderr
    elif name in EXTRAS:
        assert ran.stderr.startswith(f"Error: This command needs: pip install 'maskfleet[{EXTRAS[name]}]' (")
        assert ran.returncode == 1
    else:
        assert ran.stderr.startswith("no_server: ")
        assert ran.returncode == 2


def test_a_module_of_our_own_that_is_missing_is_not_taken_for_an_extra() -> None:
    context = click.Context(main)
    context.invoked_subcommand = "up"

    with pytest.raises(ModuleNotFoundError), naming_extras(context):
        importlib.import_module("maskfleet.nothing")


def test_every_extra_that_a_command_names_is_one(installed: Installed) -> None:
    (made,) = metadata.distributions(name="maskfleet", path=[str(installed.package.parent)])

    offered = set(made.metadata.get_all("Provides-Extra") or ())

    assert offered >= {extra for extras in EXTRAS.values() for extra in extras.split(",")}
    assert offered >= {"server", "api", "worker", "stack", "edgetam", "all", "dev"}


def test_the_command_line_is_installed(client_only: Installed) -> None:
    script = client_only.environment / "bin" / "maskfleet"
    ran = subprocess.run(
        [script, "--help"], capture_output=True, text=True, cwd=client_only.folder, env=client_only.variables
    )

    assert ran.stdout.startswith("Usage: maskfleet ")
    assert all(name in ran.stdout for name in COMMANDS)


@contextmanager
def running_up(installed: Installed) -> Iterator[str]:
    """`maskfleet up`, from its line of JSON to its end, which must be a good one."""
    log_path = installed.folder / "up.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            installed.command("-m", "maskfleet", "up", "--json"),
            cwd=installed.folder,
            env=installed.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as up,
    ):
        try:
            assert up.stdout is not None
            line = up.stdout.readline()
            assert line, log_path.read_text()
            yield line
        finally:
            up.terminate()
        assert up.wait(30) == 0


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist with the setuptools that the tests have."""
    made = run_backend(kind, source, out)
    assert made.returncode == 0, made.stderr
    return out / made.stdout.splitlines()[-1]


def run_backend(kind: str, source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", code, out], cwd=source, capture_output=True, text=True)


def install(wheel: Path, folder: Path) -> Installed:
    made = Installed(folder / "environment", folder / "project")
    venv.create(made.environment, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(made.environment / "bin" / "python")]
    # Without PYTHONPATH: pip would take a checkout that it finds there for the package, installed already.
    command = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, cwd=folder, env=made.variables, check=True)
    for name in FOREIGN:
        (made.folder / name).mkdir(parents=True)
        (made.folder / name / "__init__.py").write_text("raise ImportError('This is a package of somebody else.')\n")
    return made


def needed(distribution: metadata.Distribution) -> set[str]:
    """Name what a package needs without its extras, and what that needs."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        for requirement in map(Requirement, waiting.pop().requires or ()):
            if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
                found.add(requirement.name)
                waiting.append(metadata.distribution(requirement.name))
    return found


def top_level(distribution: metadata.Distribution) -> Iterable[str]:
    return {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}


def contents(wheel: Path) -> dict[str, str]:
    """Each file's digest; RECORD lists the same."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def copy_kept(path: Path, copy: Path) -> None:
    """Copy a file or a folder with its symlinks, without what Python keeps beside its files."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(path, copy)
