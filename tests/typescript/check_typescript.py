"""A TypeScript client, made from the service's OpenAPI document, runs a job.  ``make test-typescript``.

Not named test_*: it needs npm's packages, which the target installs.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

from maskfleet import Client
from maskfleet.stack.process import StackLine

FOLDER = Path(__file__).parent


def run(*command: str) -> str:
    ran = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_generated_client_is_typed_and_runs_a_job(running_stack: StackLine, repository: Path) -> None:
    coins = repository / "examples" / "coins.png"
    with urllib.request.urlopen(f"{running_stack.api_url}/openapi.json", timeout=30) as document:
        (FOLDER / "openapi.json").write_bytes(document.read())

    run("npm", "run", "generate")
    run("npm", "run", "build")
    told = json.loads(run("node", "built/job.js", running_stack.api_url, running_stack.api_key, str(coins)))

    with Client(running_stack.api_url, running_stack.api_key) as client:
        (mask,) = client.segment(coins, box=(304, 14, 366, 73))
    assert told == {
        "status": "succeeded",
        "areas": [mask.area],
        "files": ["coco.json"],
        "refused": "job_not_found",
    }
