"""``python -m tests.faults.one_run``: a short run on nodes without a model, under chosen faults; prints what is broken.

The exit status is 0 whatever the verdict is: the caller judges it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from tests.faults.laboratory import Laboratory
from tests.faults.run import Plan, run
from tests.faults.schedule import ALL


@click.command()
@click.option("--fault", "faults", multiple=True, type=click.Choice([kind.name for kind in ALL]))
@click.option("--jobs", default=40, show_default=True)
@click.option("--seconds", default=8.0, show_default=True)
@click.option("--patience", default=40.0, show_default=True, help="Seconds for everything to end after that.")
@click.option("--seed", default=1, show_default=True)
def main(faults: tuple[str, ...], jobs: int, seconds: float, patience: float, seed: int) -> None:
    chosen = tuple(kind for kind in ALL if kind.name in faults)
    plan = Plan(jobs=jobs, seconds=seconds, seed=seed, faults=chosen, gap_s=0.2, patience_s=patience)
    with tempfile.TemporaryDirectory() as folder, Laboratory(Path(folder), nodes=0) as lab:
        verdict = run(lab, plan, lambda words: click.echo(words, err=True))
    for broken in verdict.broken:
        click.echo(broken)


if __name__ == "__main__":
    main()
