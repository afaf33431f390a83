"""Pack what a machine without a network needs to run the GPU tests and benchmarks into one archive.

    python -m benchmarks.pack maskfleet-gpu.tar.xz
    python -m benchmarks.pack maskfleet-gpu.tar.xz --present torch torchvision triton numpy numba llvmlite pillow hf-xet

The machine has Linux on x86-64, CPython of ``--python`` and the packages ``--present``: PyTorch with CUDA, as a rule,
and what belongs to it.  Packed are the sources as they are in the work tree, the bundled model, and a wheel of each
other package that they need, of the version in constraints.txt.  ``run.sh`` in the archive makes an environment that
sees the machine's packages, installs the wheels there without a network, and runs tests and benchmarks:

    tar xf maskfleet-gpu.tar.xz && PYTHON=python3 maskfleet-gpu/run.sh results

Wheels are compressed again, all together: a third smaller.  The archive is refused if it is larger than ``--limit-mb``:
59 MB as in the second line, but 110 MB if only PyTorch and NumPy are present (2026-11-25).
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.machine import COMMIT, ROOT

FOLDER = "maskfleet-gpu"
#: PyTorch's own packages come with it.  What else a machine has is for its user to say.
PRESENT = ("torch", "torchvision", "triton", "numpy", "pip", "setuptools")
#: What tests/worker/test_gpu.py imports besides the worker: of the extra ``dev``, and the client of Redis.
FOR_TESTS = ("pytest", "pytest-timeout", "hypothesis", "timm")
SOURCES = (
    "api",
    "benchmarks",
    "examples",
    "jobs",
    "maskfleet",
    "models",
    "tests",
    "worker",
    "Makefile",
    "pyproject.toml",
)
#: Bytes of a megabyte, as file systems and mail servers count them.
MB = 1_000_000
SCRIPT = """\
#!/usr/bin/env bash
# Install offline, then run the GPU tests and benchmarks.  Usage: run.sh FOLDER [test|bench]
# PYTHON names the interpreter that has PyTorch.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?usage: run.sh FOLDER [test|bench]}"
out=$(cd "$1" && pwd)
what=${2:-all}
python=${PYTHON:-python3}

"$python" -m venv --clear --system-site-packages "$here/venv"
venv=$here/venv/bin/python
# An interpreter that is itself in an environment passes on only the packages of the one below it.
"$python" -c 'import site, sysconfig; print("\\n".join({*site.getsitepackages(), sysconfig.get_paths()["purelib"]}))' \\
    > "$("$venv" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/of_the_machine.pth"
"$venv" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$here"/wheels/*.whl
"$venv" -m pip list --disable-pip-version-check > "$out/packages.txt"

cd "$here/sources"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$here/inductor
nvidia-smi > "$out/nvidia-smi.txt" || true
failed=0
if test "$what" != bench; then
    "$venv" -m pytest -p no:cacheprovider -m gpu tests/worker/test_gpu.py 2>&1 | tee "$out/test-gpu.log" || failed=1
fi
if test "$what" != test; then
    for command in @BENCHMARKS@; do
        "$venv" -m $command 2>&1 | tee -a "$out/bench-gpu.log" || failed=1
    done
    cp benchmarks/results/*.json "$out"
fi
exit $failed
"""


class DoesNotFit(Exception):
    """The archive is larger than allowed."""


def packages_needed(
    roots: Iterable[str], present: Iterable[str], environment: dict[str, str], pins: dict[str, str]
) -> dict[str, str]:
    """Return the packages, with their versions, that ``roots`` need and a machine lacks.

    roots: requirements.  present: names of packages that it has, with all that they need.  environment: its markers.
    pins: versions by canonical name.  What a package needs is read from its installed copy on this machine.
    """
    has, needed, seen = (
        {canonicalize_name(name) for name in present},
        dict[str, str](),
        set[tuple[str, frozenset[str]]](),
    )
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in has or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        asked = (str(name), frozenset({*requirement.extras, ""}))
        if asked in seen:
            continue
        seen.add(asked)
        try:
            needed[name] = pins[name]
            theirs = [Requirement(one) for one in requires(name) or ()]
        except (KeyError, PackageNotFoundError) as error:
            raise SystemExit(f"{name} is not in constraints.txt, or not installed here: run `make setup`.") from error
        for one in theirs:
            marker = one.marker
            if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in asked[1]):
                one.marker = None
                waiting.append(one)
    return needed


def read_pins(text: str) -> dict[str, str]:
    """Read constraints.txt."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def own_requirements(pyproject: str) -> list[str]:
    """Return what the worker needs, as pyproject.toml has it."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["service"], *extras["worker"]]
    return [one for one in listed if canonicalize_name(Requirement(one).name) != "maskfleet"]


def markers_of(python: str) -> dict[str, str]:
    """Return the markers of CPython on Linux, x86-64.  python: as in 3.12."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def download(packages: dict[str, str], python: str, folder: Path) -> None:
    """Download wheels for Linux on x86-64."""
    digits = python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--python-version", python, "--implementation", "cp"]
    command += [part for abi in (f"cp{digits}", "abi3", "none") for part in ("--abi", abi)]
    command += [part for platform in platforms for part in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in packages.items())], check=True)


def without_compression(wheel: Path) -> bytes:
    """Return a wheel with its files as they are: the archive compresses them better, and pip checks only contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as stored:
        for entry in packed.infolist():
            contents = packed.read(entry)
            entry.compress_type = zipfile.ZIP_STORED
            stored.writestr(entry, contents)
    return buffer.getvalue()


def own_files() -> Iterator[Path]:
    """Yield the sources' files that are in the repository, or would be, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        path = ROOT / name
        if name and (path.is_symlink() or path.is_file()):
            yield Path(name)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write_archive(path: Path, wheels: Sequence[Path], files: Iterable[Path], limit: int) -> int:
    """Write the archive and return its size in bytes; raises DoesNotFit, and leaves none, if it is above the limit."""
    with tarfile.open(path, "w:xz", preset=9) as archive:

        def add(name: str, contents: bytes, mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode = len(contents), mode
            archive.addfile(entry, io.BytesIO(contents))

        add("run.sh", run_script().encode(), 0o755)
        add(f"sources/{COMMIT.name}", commit().encode())
        for name in files:
            archive.add(ROOT / name, f"{FOLDER}/sources/{name}", recursive=False)
        for wheel in sorted(wheels):
            add(f"wheels/{wheel.name}", without_compression(wheel))
    size = path.stat().st_size
    if size > limit:
        path.unlink()
        raise DoesNotFit(f"The archive has {size / MB:.1f} MB, more than {limit / MB:.1f}.")
    return size


def run_script() -> str:
    """Return run.sh, with the benchmarks that ``make bench-gpu`` runs."""
    lines = (ROOT / "Makefile").read_text().partition("\nbench-gpu:")[2].splitlines()[1:]
    commands = []
    for line in lines:
        if not line.startswith("\t"):
            break
        commands.append(line.partition(" -m ")[2])
    return SCRIPT.replace("@BENCHMARKS@", " ".join(f'"{command}"' for command in commands))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="a .tar.xz")
    parser.add_argument("--present", nargs="+", default=PRESENT, metavar="NAME", help=f"default: {' '.join(PRESENT)}")
    parser.add_argument("--without", nargs="+", default=(), metavar="NAME", help="leave out although it is needed")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--limit-mb", type=float, default=64)
    options = parser.parse_args()
    pins = read_pins((ROOT / "constraints.txt").read_text())
    roots = [*own_requirements((ROOT / "pyproject.toml").read_text()), *FOR_TESTS]
    packages = packages_needed(roots, [*options.present, *options.without], markers_of(options.python), pins)
    with tempfile.TemporaryDirectory() as folder:
        download(packages, options.python, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
        for wheel in wheels:
            print(f"{wheel.stat().st_size / MB:8.2f} MB  {wheel.name}")
        try:
            size = write_archive(options.archive, wheels, own_files(), int(options.limit_mb * MB))
        except DoesNotFit as error:
            raise SystemExit(f"{error} Name more that the machine has with --present.") from error
    print(f"{size / MB:8.2f} MB  {options.archive}")


if __name__ == "__main__":
    main()
