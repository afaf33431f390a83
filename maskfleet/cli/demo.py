"""``maskfleet demo``: one job of each mode on a real photo, through a real queue and store, to a verified webhook."""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from maskfleet import Client
from maskfleet.cli.demo_progress import DemoProgress
from maskfleet.cli.extras import require
from maskfleet.client.errors import ApiError, WaitTimeout
from maskfleet.client.submission import JobFields
from maskfleet.data import DEMO_PHOTO
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import JobView
from maskfleet.jobs.schema.spec import Output
from maskfleet.stack.process import StackNotReady, StackProcess
from maskfleet.stack.receiver import Receiver

#: A job of the demo takes seconds; a very slow machine some minutes.
JOB_S = 600.0
WEBHOOK_S = 60.0

#: Coins of the photo, which is 384×303: the middle of each, and a point on the ground next to it.
_POINTS = (
    Prompt(points=((153, 126),)),
    Prompt(points=((270, 118), (306, 120)), labels=(1, 0)),
    Prompt(points=((45, 124), (50, 117), (75, 125)), labels=(1, 1, 0)),
)
_BOXES = (
    Prompt(box=(304, 14, 366, 73)),
    Prompt(box=(244, 94, 298, 146)),
    Prompt(box=(314, 155, 378, 219)),
    Prompt(box=(17, 232, 76, 287)),
    Prompt(box=(143, 235, 202, 288)),
)
JOBS: dict[str, JobFields] = {
    # A little below and well below the defaults: with these, the demo checkpoint finds every coin exactly once.
    "everything": {"mode": "everything", "params": {"pred_iou_thresh": 0.85, "crops_nms_thresh": 0.3}},
    "point": {"mode": "point", "prompts": _POINTS},
    "box": {"mode": "box", "prompts": _BOXES},
}


@dataclass(frozen=True, slots=True)
class Checked:
    """An ended job of the demo: its result, and what was wrong, if anything."""

    job: JobView
    manifest: Manifest | None
    faults: tuple[str, ...]


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Where to write the results.",
)
def demo_command(out: Path) -> None:
    """Start a local stack, send it one job of each mode, and show what comes back.

    The exit status is 0 only if every job succeeded, every webhook arrived and was verified, every file matches
    its manifest, and everything that was started has stopped.
    """
    require("server", "worker")
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _stop)
    console = Console(width=None if sys.stdout.isatty() else 120)
    _clear(out)
    # The stack and the receiver are on this machine, where webhooks are not sent unless this is set.
    settings = {"MASKFLEET_EGRESS_ALLOW_PRIVATE": "1"}
    with tempfile.TemporaryDirectory(prefix="maskfleet-demo-") as data:
        try:
            console.print("Starting Redis, S3, the API, a worker and the courier …")
            with StackProcess(Path(data), settings) as stack:
                console.print(f"Ready at {stack.line.api_url}.  Sending three jobs for {DEMO_PHOTO.name}.")
                ended = _run_jobs(stack.line.api_url, stack.line.api_key, out, console)
                left = stack.stop()
        except (ApiError, StackNotReady) as error:
            raise click.ClickException(str(error)) from error
    console.print(_table(ended))
    faults = [f"{mode}: {fault}" for mode, checked in ended.items() for fault in checked.faults]
    faults += [f"{name} did not stop" for name in left]
    if faults:
        raise click.ClickException("\n".join(faults))
    console.print(f"3 jobs succeeded, 3 signed webhooks verified, everything stopped.  See {out}/*/overlay.png.")


def _run_jobs(api_url: str, api_key: str, out: Path, console: Console) -> dict[str, Checked]:
    with Client(api_url, api_key) as client, Receiver(*client.webhook_secret().all) as receiver:
        ids: dict[str, str] = {}
        for mode, fields in JOBS.items():
            job: JobFields = {
                **fields,
                "outputs": tuple(Output),
                "webhook": {"url": receiver.url},
                "metadata": {"demo": mode},
            }
            ids[mode] = client.submit(photo=DEMO_PHOTO, **job).id
        with DemoProgress(console) as progress:
            ended = _watch(client, ids, progress)
        return {mode: _check(client, job, receiver, out / mode) for mode, job in ended.items()}


def _watch(client: Client, ids: dict[str, str], progress: DemoProgress) -> dict[str, JobView]:
    """Show the progress of all jobs until the last one has ended."""
    ended: dict[str, JobView] = {}
    deadline = time.monotonic() + JOB_S
    while len(ended) < len(ids):
        # Long-poll the first unfinished job; ask for the others without waiting.
        going_on = [mode for mode in ids if mode not in ended]
        for mode in going_on:
            job = client.get(ids[mode], held_s=1 if mode == going_on[0] else 0)
            progress.show(mode, job)
            if job.ended:
                ended[mode] = job
        if time.monotonic() > deadline:
            raise WaitTimeout("waited_too_long", f"The jobs did not end within {JOB_S:g} s.")
    return {mode: ended[mode] for mode in ids}


def _check(client: Client, job: JobView, receiver: Receiver, folder: Path) -> Checked:
    """Check that the job succeeded, its webhook arrived, and its files match the manifest."""
    faults: list[str] = []
    manifest: Manifest | None = None
    if job.status != "succeeded":
        reason = f": {job.error.code}, {job.error.detail}" if job.error else ""
        faults.append(f"the job {job.status}{reason}")
    try:
        event = receiver.wait_for(job.id, WEBHOOK_S)
        masks = job.result.masks if job.result else None
        if str(event.data.status) != str(job.status) or event.data.masks != masks:
            faults.append("the webhook and the API disagree on how the job ended")
    except TimeoutError as error:
        faults.append(str(error))
    if job.result is not None:
        manifest = client.fetch(job.id, folder)
        faults += _file_faults(manifest, folder)
        if job.result.masks == 0:
            faults.append("no masks were found")
    return Checked(job, manifest, tuple(faults))


def _file_faults(manifest: Manifest, folder: Path) -> list[str]:
    names = {file.name for file in manifest.files}
    expected = {"coco.json", "label_map.png", "overlay.png"}
    faults = [f"{name} is not in the manifest" for name in sorted(expected - names)]
    pictures = sum(name.startswith("masks/") for name in names)
    if pictures != len(manifest.masks):
        faults.append(f"{len(manifest.masks)} masks, but {pictures} mask images")
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            faults.append(f"{path} does not match the manifest")
    return faults


def _table(ended: dict[str, Checked]) -> Table:
    table = Table(title="maskfleet demo")
    for title in ("mode", "masks", "best score", "queue wait", "run time"):
        table.add_column(title, justify="left" if title == "mode" else "right", no_wrap=True)
    table.add_column("S3 keys", overflow="fold")
    for mode, checked in ended.items():
        job = checked.job
        best = job.result.best_score if job.result else None
        table.add_row(
            mode,
            str(job.result.masks) if job.result else str(job.status),
            "–" if best is None else f"{best:.3f}",
            _seconds(job.queue_s),
            _seconds(job.run_s),
            "\n".join(_keys(checked)),
        )
    return table


def _keys(checked: Checked) -> list[str]:
    if checked.job.result is None or checked.manifest is None:
        return ["–"]
    masks = [file.key for file in checked.manifest.files if file.name.startswith("masks/")]
    others = [file.key for file in checked.manifest.files if not file.name.startswith("masks/")]
    pictures = [f"{masks[0]} … {PurePosixPath(masks[-1]).name}"] if masks else []
    prefix = checked.job.result.prefix
    return [prefix, *(f"  {key.removeprefix(prefix)}" for key in (checked.job.result.manifest_key, *others, *pictures))]


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f} s"


def _clear(out: Path) -> None:
    """Remove what an earlier demo left, so that its masks cannot be mistaken for new ones."""
    for mode in JOBS:
        folder = out / mode
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
            raise click.ClickException(f"{folder} contains files that the demo did not write. Use another --out.")
        shutil.rmtree(folder, ignore_errors=True)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    # As with Ctrl-C: unwind through every ``finally``, so that the stack is stopped.
    raise KeyboardInterrupt
