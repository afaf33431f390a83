"""Measure how long a program waits for the client's import, beside the packages that it is made of and other clients.

    python -m benchmarks.import_time

Each import runs in a new process, with compiled bytecode, in turn with the others; what an empty process takes is
subtracted.  CPU time, so that other programs on the machine count for less.  Without compiled bytecode (a checkout
under PYTHONDONTWRITEBYTECODE) the client takes some 40 ms more.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from statistics import median

from benchmarks.machine import keep, spread

RUNS = 7
IMPORTS = {
    "nothing": "pass",
    "maskfleet: Client": "from maskfleet import Client",
    "maskfleet: Client, and masks as arrays": "from maskfleet import Client; import maskfleet.client.pixels",
    "maskfleet: AsyncClient, connected": "from maskfleet import AsyncClient; AsyncClient('http://127.0.0.1:1', 'key')",
    "requests and pydantic": "import requests; from pydantic import BaseModel",
    "huggingface_hub: InferenceClient": "from huggingface_hub import InferenceClient",
    "boto3, with a client": "import boto3; boto3.client('s3', region_name='eu-west-1')",
    "transformers: pipeline": "from transformers import pipeline",
}


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for run in range(RUNS + 1):
        for name, code in IMPORTS.items():
            seconds = cpu_s(code)
            if run:  # the first one compiles, and reads from the disk
                taken[name].append(seconds)
    start_s = median(taken.pop("nothing"))
    figures = {name: spread([seconds - start_s for seconds in found]) for name, found in taken.items()}
    keep("import_time", "python -m benchmarks.import_time", {"cpu_s": figures, "empty_process_cpu_s": start_s})


def cpu_s(code: str) -> float:
    """Return the CPU seconds of a new process that runs this."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
