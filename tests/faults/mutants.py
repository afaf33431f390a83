"""``python -m tests.faults.mutants``: break the product on purpose; the checker must find each broken promise.

Each mutant is a copy of the repository with one thing wrong.  It runs in the laboratory under the faults that bring the
defect to light.  So does a copy without a defect, in which nothing may be found.  The exit status is 0 if all is well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from tests.faults.laboratory import ROOT

#: What a run needs of the repository.
COPIED = ("api", "jobs", "worker", "maskfleet", "tests", "benchmarks")
LINKED = ("models", "examples")
#: A run that takes longer hangs.
RUN_S = 300
#: Runs side by side: most of the time each waits.
AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class Mutant:
    """A defect: ``right`` is replaced by ``wrong`` in ``file``.

    faults: those under which it shows.  found: a pattern of what the checker must say.
    """

    name: str
    file: str
    right: str
    wrong: str
    found: str
    faults: tuple[str, ...] = ()

    def apply(self, root: Path) -> None:
        """Change the file.  Raises ValueError if it does not hold ``right`` exactly once."""
        place = root / self.file
        text = place.read_text()
        if text.count(self.right) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {text.count(self.right)} times: {self.right}")
        place.write_text(text.replace(self.right, self.wrong))


MUTANTS = (
    Mutant(
        "fence and token are not compared",
        "jobs/ledger/lua/jobs.lua",
        "return job.status == 'processing' and job.fence == fence and job.token == token",
        "return job.status == 'processing'",
        "which it no longer held",
        ("node_suspended_past_its_lease",),
    ),
    Mutant(
        "a cancellation is accepted and forgotten",
        "jobs/ledger/lua/cancel.lua",
        "redis.call('HSET', job_key(id), 'cancel', 1)",
        "",
        "after its cancellation was accepted",
    ),
    Mutant(
        "leases are taken back half a minute late",
        "jobs/ledger/lua/reap.lua",
        "redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, ",
        "redis.call('ZRANGEBYSCORE', LEASES, '-inf', now - 30000, ",
        "was put back|never ended",
        ("child_killed_mid_job",),
    ),
    Mutant(
        "an idempotency key is ignored",
        "jobs/ledger/lua/create.lua",
        "known() or refusal(bytes)",
        "refusal(bytes)",
        "the key .* stands for 2",
    ),
    Mutant(
        "a beat does not renew the lease",
        "jobs/ledger/lua/beat.lua",
        "redis.call('ZADD', LEASES, now + ARGV[4], id)",
        "",
        "lease_ran_out, which no fault explains",
    ),
    Mutant(
        "the end of a job queues no webhook",
        "jobs/ledger/lua/jobs.lua",
        "if is_told then queue_delivery(",
        "if false then queue_delivery(",
        "was never told",
    ),
    Mutant(
        "an ended job stays in flight",
        "jobs/ledger/lua/jobs.lua",
        "redis.call('SREM', inflight_key(tenant), id)",
        "",
        "in flight: .* are left",
    ),
    Mutant(
        "an outage of the store is charged to the job",
        "worker/retry.py",
        "if isinstance(error, (*OUTAGES, NodeFault)) and tried_for_s < patience.outage_s:",
        "if False:",
        "attempt .* was (not )?charged|store_unavailable.*, which no fault explains",
        ("store_gone", "store_answers_are_cut"),
    ),
    Mutant(
        "a batch's counts are not kept",
        "jobs/ledger/lua/jobs.lua",
        "if job.batch then move_in_batch(job.batch, job.status, status, now, retention_ms, id) end",
        "",
        "batch_.* (was said to have|is processing|is queued)|the end of batch_.* was never told",
    ),
    Mutant(
        "a manifest has other digests than its files",
        "worker/uploads.py",
        "hashlib.sha256(artifact.data)",
        "hashlib.sha256(artifact.data[1:])",
        "whose objects are not what it says",
    ),
    Mutant(
        "nobody rings where a bell was lost",
        "worker/courier/courier.py",
        "self._ledger.silent_queues().items()",
        "()",
        "was accepted and never ended",
        ("bells_lost",),
    ),
    Mutant(
        "webhooks are signed with another secret",
        "worker/courier/send.py",
        ".sign(delivery_id, now, body)",
        ".sign(delivery_id, now, body[1:])",
        "a signature that does not hold",
    ),
)


@contextmanager
def _copied(mutant: Mutant | None) -> Iterator[Path]:
    """Copy the repository, apply the defect, and yield the copy."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        for name in COPIED:
            shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        for name in LINKED:
            (root / name).symlink_to(ROOT / name)
        if mutant:
            mutant.apply(root)
        yield root


def found_in(mutant: Mutant | None, faults: tuple[str, ...]) -> list[str]:
    """Return what the checker found broken in a run of the mutant, or of the product as it is."""
    with _copied(mutant) as root:
        command = [sys.executable, "-m", "tests.faults.one_run", *(f"--fault={fault}" for fault in faults)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode:
        raise RuntimeError(f"the run itself broke:\n{done.stderr[-4000:]}")
    found = done.stdout.splitlines()
    if mutant and not any(re.search(mutant.found, words) for words in found):
        click.echo(done.stderr, err=True)  # what the faults met
    return found


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Run the mutants whose name contains one of NAMES; without any, all."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    every_fault = tuple(sorted({fault for mutant in chosen for fault in mutant.faults}))
    with ThreadPoolExecutor(AT_ONCE) as runs:
        sound = runs.submit(found_in, None, every_fault)
        of_mutants = [(mutant, runs.submit(found_in, mutant, mutant.faults)) for mutant in chosen]
        missed = 0
        for mutant, run in of_mutants:
            broken = run.result()
            hit = next((words for words in broken if re.search(mutant.found, words)), None)
            missed += hit is None
            click.echo(f"{'found ' if hit else 'MISSED'} {mutant.name}: {hit or '; '.join(broken[:3]) or 'nothing'}")
        click.echo(f"{'WRONG ' if sound.result() else 'right '} the product as it is: {'; '.join(sound.result()[:3])}")
    sys.exit(1 if missed or sound.result() else 0)


if __name__ == "__main__":
    main()
