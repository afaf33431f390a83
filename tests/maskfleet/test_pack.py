"""The archive for a machine without a network: what goes in, and that it can be installed from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment

from benchmarks import pack

WHEEL = {
    "tiny_thing/__init__.py": "ANSWER = 42\n" * 500,
    "tiny_thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
    "tiny_thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_thing-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, contents in WHEEL.items():
            packed.writestr(name, contents)
    return path


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    return pack.read_pins((repository / "constraints.txt").read_text())


def test_what_a_package_needs_is_packed_with_it_and_what_the_machine_has_is_not(pins: dict[str, str]) -> None:
    environment = pack.markers_of("3.12")

    needed = pack.packages_needed(["boto3"], [], environment, pins)
    but_for_urllib3 = pack.packages_needed(["boto3"], ["URLlib3"], environment, pins)

    assert {"boto3", "botocore", "jmespath", "urllib3", "six"} <= needed.keys()
    assert needed.keys() - but_for_urllib3.keys() == {"urllib3"}
    assert all(pins[name] == version for name, version in needed.items())


def test_what_an_extra_needs_is_packed_only_if_the_extra_is_asked_for(pins: dict[str, str]) -> None:
    environment = pack.markers_of("3.12")

    assert "redis" not in pack.packages_needed(["celery"], [], environment, pins)
    assert "redis" in pack.packages_needed(["celery", "celery[redis]"], [], environment, pins)


def test_requirements_of_other_machines_are_left_out(pins: dict[str, str]) -> None:
    needed = pack.packages_needed(
        ["requests; sys_platform == 'win32'", "click; python_version < '3.12'", "rich"],
        [],
        pack.markers_of("3.12"),
        pins,
    )

    assert "rich" in needed
    assert not needed.keys() & {"requests", "click"}


def test_the_worker_needs_no_package_that_is_not_pinned(repository: Path, pins: dict[str, str]) -> None:
    roots = pack.own_requirements((repository / "pyproject.toml").read_text())

    needed = pack.packages_needed([*roots, *pack.FOR_TESTS], pack.PRESENT, pack.markers_of("3.12"), pins)

    assert {"celery", "redis", "transformers", "numba", "pytest"} <= needed.keys()
    assert not needed.keys() & {"torch", "numpy", "maskfleet"}
    assert default_environment()["implementation_name"] == "cpython"


def test_a_wheel_without_compression_is_installed_by_pip(wheel: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored" / wheel.name
    stored.parent.mkdir()
    stored.write_bytes(pack.without_compression(wheel))
    target = tmp_path / "site"

    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, stored],
        check=True,
    )
    said = subprocess.run(
        [sys.executable, "-c", "import tiny_thing; print(tiny_thing.ANSWER)"],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert stored.stat().st_size > wheel.stat().st_size
    assert said.stdout == "42\n"


def test_the_archive_holds_sources_wheels_and_a_script_that_runs_every_benchmark(wheel: Path, tmp_path: Path) -> None:
    archive = tmp_path / "packed.tar.xz"

    size = pack.write_archive(archive, [wheel], list(pack.own_files()), limit=20 * pack.MB)

    assert size == archive.stat().st_size
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / pack.FOLDER
    assert f"{pack.FOLDER}/wheels/{wheel.name}" in names
    assert (folder / "sources" / "maskfleet" / "worker" / "segment.py").is_file()  # through a symlink
    assert (folder / "sources" / "models" / "sam-demo" / "model.safetensors").stat().st_size > pack.MB
    script = (folder / "run.sh").read_text()
    assert os.access(folder / "run.sh", os.X_OK)
    assert "@" not in script.replace('"$@"', "")
    for command in ("benchmarks.gpu", "benchmarks.precision --device cuda", "benchmarks.core --model vit-b"):
        assert f'"{command}' in script
    subprocess.run(["bash", "-n", folder / "run.sh"], check=True)


def test_an_archive_that_is_too_large_is_not_left_behind(wheel: Path, tmp_path: Path) -> None:
    archive = tmp_path / "packed.tar.xz"

    with pytest.raises(pack.DoesNotFit, match=r"more than 0\.0"):
        pack.write_archive(archive, [wheel], [], limit=100)

    assert not archive.exists()
