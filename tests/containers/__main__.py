"""Build the images and run the tests of this folder: ``make test-containers``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.compose_file import read_compose
from tests.containers.engine import Engine, choose_driver, in_namespace, missing_packages
from tests.containers.images import REPOSITORY, build
from tests.containers.settings import ENGINE_VARIABLE, ENV

#: How ``main`` calls itself, where containers can run.
BUILD = "--build-in"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep the images there, and use those that are.")
    parser.add_argument(BUILD, type=Path, dest="build_in", help=argparse.SUPPRESS)
    parser.add_argument("--driver", help=argparse.SUPPRESS)
    parser.add_argument("tests", nargs="*", help="Arguments of pytest.")
    arguments = parser.parse_args()
    if arguments.build_in is not None:
        return _build(Engine(arguments.build_in, arguments.driver))
    if sys.platform != "linux" or os.geteuid() != 0:
        print("Containers are tested as root on Debian.", file=sys.stderr)
        return 2
    if missing := missing_packages():
        print(f"Install what is missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2

    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="maskfleet-containers-", dir="/var/tmp"))
    folder.mkdir(exist_ok=True)
    try:
        engine = Engine(folder, choose_driver(folder))
        here = [sys.executable, "-m"]
        if not (folder / "built.json").exists():
            told = [BUILD, str(folder), "--driver", engine.driver]
            subprocess.run(in_namespace([*here, "tests.containers", *told]), check=True, cwd=REPOSITORY)
        tests = [
            *here,
            "pytest",
            "-v",
            "--durations=10",
            "-p",
            "no:cacheprovider",
            "tests/containers",
            *arguments.tests,
        ]
        environment = {**os.environ, ENGINE_VARIABLE: f"{engine.driver}:{folder}"}
        return subprocess.run(
            in_namespace(tests, own_network=True), check=False, cwd=REPOSITORY, env=environment
        ).returncode
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _build(engine: Engine) -> int:
    work = engine.folder / "work"
    work.mkdir(exist_ok=True)
    built = build(engine, read_compose(REPOSITORY / "docker-compose.yml", ENV), work)
    for one in built:
        print(f"{one.name}: {one.size_mb:,.0f} MB, {one.own_mb:,.0f} of them its own; built in {one.built_in_s:.0f} s")
    (engine.folder / "built.json").write_text(json.dumps([asdict(one) for one in built]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
