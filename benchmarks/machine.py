"""Describe the machine a figure was measured on, and store the figure with its command."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
#: Written by ``benchmarks.pack``: the commit of sources that are not in a repository.
COMMIT = ROOT / "COMMIT"


def describe() -> dict[str, object]:
    """Return the processor, the cores that this process may use, the versions, the commit and the time."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = COMMIT.read_text() if COMMIT.exists() else git.stdout
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": _versions("celery", "redis", "flask", "gunicorn", "torch", "transformers", "numba"),
        "commit": commit.strip(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def keep(name: str, command: str, figures: object) -> None:
    """Write the figures to results/{name}.json and show them."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"command": command, "machine": describe(), "figures": figures}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-len(ordered) * percent // 100).__int__() - 1))]


def spread(values: list[float]) -> dict[str, float]:
    """Summarise repeated measurements: median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
