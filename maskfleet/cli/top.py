"""``maskfleet top``: the fleet as it works, in a terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maskfleet import Client
from maskfleet.cli.server import connect, server_of, server_options
from maskfleet.cli.terminal import printable, reporting_errors
from maskfleet.client.errors import ApiError, Refused
from maskfleet.jobs.schema.fleet import FleetView, FleetWorker, ModelFleet, WorkerState

#: Throughput is measured over the latest views of so many seconds.
WINDOW_S = 60.0
#: A worker that has not announced itself for so long may be gone: it does so every few seconds.
LATE_S = 15
_STYLES = {
    WorkerState.STARTING: "yellow",
    WorkerState.IDLE: "dim",
    WorkerState.BUSY: "green",
    WorkerState.DRAINING: "yellow",
    WorkerState.WITHDRAWN: "bold red",
}
#: What needs somebody comes first, and stays in view in a small terminal.
_ORDER = (WorkerState.WITHDRAWN, WorkerState.STARTING, WorkerState.DRAINING, WorkerState.BUSY, WorkerState.IDLE)


@click.command("top")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to ask.",
)
@click.option("--once", is_flag=True, help="Print it once; also if the output is not a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print it once, as one line of JSON: GET /v1/fleet.")
@server_options
def top_command(every_s: float, once: bool, as_json: bool, api_url: str | None, api_key: str | None) -> None:
    """Show workers, models and throughput, until Ctrl-C.

    The key needs the scope admin.
    """
    console = Console()
    with reporting_errors():
        with connect(api_url, api_key) as client:
            view = client.whole_fleet()
        if as_json:
            click.echo(view.model_dump_json())
        elif once or not console.is_terminal:
            console.print(shown(view, Throughput()))
        else:
            server = server_of(api_url, api_key)
            # Without tries of its own: the next view is one.
            with Client(server.api_url, server.api_key, max_tries=1) as client:
                _watch(client, view, every_s, console)


def _watch(client: Client, view: FleetView, every_s: float, console: Console) -> None:
    throughput, trouble = Throughput(), ""
    throughput.note(view, time.monotonic())
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(shown(view, throughput, trouble, rows=console.size.height), refresh=True)
                time.sleep(every_s)
                try:
                    view, trouble = client.whole_fleet(), ""
                    throughput.note(view, time.monotonic())
                except Refused:
                    raise
                except ApiError as error:  # it may pass; what was seen last stays in view
                    trouble = f"{datetime.now():%H:%M:%S} {error}"
    except KeyboardInterrupt:
        sys.exit(0)


@dataclass(slots=True)
class Throughput:
    """How many jobs are done in a minute: by what the workers' own counts grew from view to view."""

    _done: deque[tuple[float, dict[str, int]]] = field(default_factory=deque)
    _counts: dict[str, int] | None = None

    def note(self, view: FleetView, now_s: float) -> None:
        """Note a view; now_s: of a clock that only goes forward."""
        counts = {worker.node: worker.jobs for worker in view.workers}
        models = {worker.node: worker.model for worker in view.workers}
        grown: dict[str, int] = {}
        for node, jobs in counts.items():
            before = (self._counts or counts).get(node, 0)
            # A process that was replaced counts from 0 again.
            grown[models[node]] = grown.get(models[node], 0) + (jobs - before if jobs >= before else jobs)
        self._counts = counts
        self._done.append((now_s, grown))
        while now_s - self._done[0][0] > WINDOW_S:
            self._done.popleft()

    def per_minute(self, model: str) -> float | None:
        """Return a model's jobs a minute; None before a second view."""
        if len(self._done) < 2:
            return None
        (first_s, _), *later = self._done
        return 60 * sum(grown.get(model, 0) for _, grown in later) / max(later[-1][0] - first_s, 0.001)


def shown(view: FleetView, throughput: Throughput, trouble: str = "", *, rows: int | None = None) -> RenderableType:
    """Return the tables of models and workers.  rows: of the terminal; more workers are counted, not listed."""
    models, workers = _models(view.models, throughput), _ordered(view.workers)
    room = len(workers) if rows is None else max(1, rows - len(view.models) * 2 - 10)
    hidden = len(workers) - room
    parts: list[RenderableType] = [models, *_reasons(view.models), Text(), _workers(workers[:room])]
    if hidden > 0:
        parts.append(Text(f"… and {hidden} more workers: `maskfleet top --once` lists them.", "dim"))
    parts += [Text(f"{worker.node}: {printable(worker.fault)}", "red") for worker in workers if worker.fault][:5]
    if trouble:
        parts.append(Text(f"No answer; this was seen last. {printable(trouble)}", "bold red"))
    return Group(*parts)


def _models(models: Iterable[ModelFleet], throughput: Throughput) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("MODEL", no_wrap=True)
    for name in ("QUEUED", "RUNNING", "OLDEST", "BACKLOG", "JOBS/MIN", "READY", "START", "DRAIN", "OUT", "DESIRED"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        rate, of = throughput.per_minute(model.model), model.workers
        oldest_s = max((one.oldest_s for one in model.classes), default=0.0)
        ready = of.idle + of.busy
        table.add_row(
            printable(model.model),
            f"{model.queued:,}",
            f"{model.running:,}",
            duration(oldest_s) if model.queued else "-",
            duration(model.backlog_s),
            "-" if rate is None else f"{rate:.1f}",
            str(ready),
            str(of.starting),
            str(of.draining),
            Text(str(of.withdrawn), "bold red" if of.withdrawn else ""),
            Text(str(model.desired_workers), "yellow" if model.desired_workers > ready else ""),
        )
    return table


def _reasons(models: Iterable[ModelFleet]) -> list[Text]:
    return [
        Text(f"{printable(model.model)}: {model.desired_workers} desired ({model.reason}). {model.explanation}", "dim")
        for model in models
    ]


def _ordered(workers: Iterable[FleetWorker]) -> list[FleetWorker]:
    known = {state: place for place, state in enumerate(_ORDER)}
    return sorted(workers, key=lambda worker: (known.get(worker.state, len(_ORDER)), worker.node))


def _workers(workers: Iterable[FleetWorker]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("WORKER", "STATE", "SINCE", "DEVICE", "MODEL", "JOB"):
        table.add_column(name, no_wrap=True)
    for name in ("JOBS", "START", "SEEN", "VERSION"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        seen = worker.seen_s_ago
        since_s = (datetime.now(UTC) - worker.since).total_seconds() if worker.since else None
        table.add_row(
            printable(worker.node),
            Text(str(worker.state), _STYLES.get(worker.state, "")),
            "-" if since_s is None else duration(max(0.0, since_s)),
            printable(worker.device),
            printable(worker.model),
            worker.job or "-",
            f"{worker.jobs:,}",
            "-" if worker.start_s is None else duration(worker.start_s),
            Text("-" if seen is None else f"{seen} s", "red" if seen is not None and seen > LATE_S else ""),
            printable(worker.version or "-"),
        )
    return table


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 4.2 s, 3 m 12 s, 2 h 5 m, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for size, name, lower, lower_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // lower
            return f"{whole // size} {name} {rest} {lower_name}" if rest else f"{whole // size} {name}"
    return f"{seconds:.0f} s"
