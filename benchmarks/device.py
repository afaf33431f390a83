"""Measure how much of the time a device waits while jobs are queued, with one worker on it and with several.

    python -m benchmarks.device

No card is needed: `benchmarks.device_side` stands in for one, by the times of CARDS.  Everything else is real: Celery
nodes, Redis, S3 behind a proxy that makes each request 30 ms late, and photographs of 12 megapixels as JPEG, with the
default parameters and outputs.  For each card and each number of workers jobs are sent so that some always wait; from
the moment at which every worker has done one, the device's computing time is summed.  Idle is what is left of the wall
clock.  "before" is one worker whose files go up one at a time, as it was until both were changed; it is left out, like
the files below, when the workers are named by ``--slots``.

Processor time is counted for the workers with the processes that decode images, and apart from them for what only the
benchmark runs on the same cores: Redis, S3, and this process, with the proxy and the sender of the jobs.

First, three hundred small files of one result go up, one at a time and side by side.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.device_side import CARD, FOLDER
from benchmarks.machine import ROOT, keep, spread
from maskfleet.cli.tune import await_nodes, large_photo, servers, settings_for_workers
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from maskfleet.stack.readiness import StackFailed
from maskfleet.stack.servers import last_lines
from maskfleet.stack.throughput import JobStream
from maskfleet.worker.node.device import CPU
from maskfleet.worker.node.machine import CpuClock
from maskfleet.worker.node.names import node_names
from maskfleet.worker.node.supervisor import start_child, stop_child
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.uploads import put_all
from tests.faults.proxy import Fault, Mode, Proxy

MODEL = ROOT / "models" / "sam-demo"
REQUEST_S = 0.03
SLOTS = (1, 2, 3, 4)
FILES, FILE_BYTES, UPLOAD_RUNS = 300, 2000, 3


@dataclass(frozen=True, slots=True)
class Card:
    """Seconds that a card computes for SAM's encoder, and for the decoder with a batch of 64 points."""

    encoder_s: float
    batch_s: float


#: Our decoder takes less than the library's; on a CPU a ninth (docs/models.md).  Assumed for cards: a quarter.
_OURS = 1 / 4
#: RTX 3090: the README of FastSAM (github.com/CASIA-IVA-Lab/FastSAM, "Inference time"; Zhao et al. 2023): one point 446
#: and 110 ms; 64 × 64 points take 4,873 and 4,034 ms longer than 32 × 32, that is 48 batches.
#: A100: segment-anything.com, FAQ: the encoder takes about 0.15 s; the decoder is assumed to be faster in proportion.
#: T4 and H100 are assumed, in proportion to the peak rates in NVIDIA's data sheets: the T4 from the RTX 3090 (float32,
#: 8.1 against 35.6 TFLOPS), the H100 from the A100 (TF32, 495 against 156).
CARDS = {
    "T4, ViT-H": Card(0.446 * 35.6 / 8.1, 4.873 / 48 * _OURS * 35.6 / 8.1),
    "RTX 3090, ViT-H": Card(0.446, 4.873 / 48 * _OURS),
    "RTX 3090, ViT-B": Card(0.110, 4.034 / 48 * _OURS),
    "A100, ViT-H": Card(0.15, 4.873 / 48 * _OURS * 0.15 / 0.446),
    "H100, ViT-H": Card(0.15 * 156 / 495, 4.873 / 48 * _OURS * 0.15 / 0.446 * 156 / 495),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", choices=tuple(CARDS), default=list(CARDS))
    parser.add_argument("--slots", nargs="+", type=int, help="workers on the card; by default 1 to 4")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long each is measured, at least")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        at_hand = exits.enter_context(servers(folder))
        way = exits.enter_context(Proxy(int(at_hand.s3_endpoint.rpartition(":")[2])))
        way.set(Fault(Mode.LATENCY, delay_s=REQUEST_S))
        settings = at_hand.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{way.port}", "model": str(MODEL)})
        if not options.slots:
            figures[f"{FILES} files, s"] = show("uploads", measure_uploads(Store(settings), way))
        bench = Bench(at_hand.model_copy(update={"model": str(MODEL)}), settings, photograph(), folder, options.seconds)
        for card in options.cards:
            rows: dict[str, object] = {}
            if not options.slots:
                rows["before"] = bench.measure(card, 1, uploads_at_once=1)
                show(f"{card}, before", rows["before"])
            for slots in options.slots or SLOTS:
                rows[str(slots)] = bench.measure(card, slots)
                show(f"{card}, {slots}", rows[str(slots)])
            figures[card] = rows
    keep("device", "python -m benchmarks.device " + " ".join(sys.argv[1:]), figures)


def show(what: str, figures: dict[str, object]) -> dict[str, object]:
    print(f"{what}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return figures


def photograph() -> bytes:
    """Return the example photo at 12 megapixels with a little noise, as large a file as a phone writes."""
    with Image.open(io.BytesIO(large_photo())) as large:
        pixels = np.asarray(large).astype(np.int16)
    noise = np.random.default_rng(1).normal(0, 5, pixels.shape[:2])[..., None]
    data = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def measure_uploads(store: Store, way: Proxy) -> dict[str, object]:
    """Write small files one at a time and side by side, alternating."""
    at_once = {"one at a time": 1, "side by side": 16}
    runs: dict[str, list[float]] = {name: [] for name in at_once}
    for run in range(UPLOAD_RUNS):
        for name, count in at_once.items():
            files = (Artifact(f"{n:04}.png", "image/png", os.urandom(FILE_BYTES)) for n in range(FILES))
            started = time.perf_counter()
            put_all(files, f"results/bench/{name}-{run}", store, lambda: None, at_once=count)
            runs[name].append(round(time.perf_counter() - started, 3))
    return {name: spread(seconds) for name, seconds in runs.items()} | {"requests at once": way.most_under_way}


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share.  at_hand, far: the servers, the store near and 30 ms away."""

    at_hand: SharedSettings
    far: SharedSettings
    photo: bytes
    folder: Path
    seconds: float

    def measure(self, card: str, slots: int, **own: int) -> dict[str, object]:
        """Run a fleet of so many workers on one card."""
        name = self.folder / f"{card}-{slots}-{time.monotonic_ns()}".replace(" ", "-")
        name.mkdir()
        times = CARDS[card]
        environment = settings_for_workers(os.environ, self.far) | {
            FOLDER: str(name),
            CARD: json.dumps([times.encoder_s, times.batch_s]),
            "MASKFLEET_MODEL": self.far.model,
            "MASKFLEET_SLOTS_PER_DEVICE": str(slots),
            "MASKFLEET_LOG_LEVEL": "WARNING",
            # As many as on a machine with a card, where workers do not divide the cores among themselves.
            "MASKFLEET_TORCH_THREADS": str(len(os.sched_getaffinity(0))),
            **{f"MASKFLEET_{setting.upper()}": str(value) for setting, value in own.items()},
        }
        log = name / "fleet.log"
        fleet = start_child(
            (sys.executable, "-m", "benchmarks.device_side", "fleet"), env=environment, log=log, cwd=ROOT
        )
        stream = JobStream(self.at_hand, self.photo)

        def check() -> None:
            if fleet.poll() is not None:
                raise StackFailed(f"The workers ended. {last_lines(log)}")

        try:
            await_nodes(WorkerRegistry(connect(self.at_hand)), node_names(CPU, slots), check)
            stream.warm_up(slots, check, deadline_s=900)
            cpu, cpu_s, else_s = CpuClock(), cpu_s_of(fleet.pid), cpu_s_of(os.getpid(), besides=fleet.pid)
            done = stream.measure(slots, check, least_s=self.seconds, least_jobs=4 * slots, deadline_s=900)
            cores, cpu_s = cpu.busy(), cpu_s_of(fleet.pid) - cpu_s
            else_s = cpu_s_of(os.getpid(), besides=fleet.pid) - else_s
        finally:
            stream.cancel()
            stop_child(fleet, grace_s=30)
        counted = [record for record in stream.ended if done.began_ms < (record.ended_ms or 0) <= done.ended_ms]
        metrics = [record.result.metrics for record in counted if record.result]
        wall_s = (done.ended_ms - done.began_ms) / 1000
        return {
            "idle": round(1 - busy_s(name, done.began_ms / 1000, done.ended_ms / 1000) / wall_s, 3),
            "jobs a minute": round(done.per_minute, 1),
            "jobs": done.jobs,
            "run_s": round(done.run_s, 3),
            "device_s a job": round(times.encoder_s + 1024 / 64 * times.batch_s, 3),
            **{
                stage: round(statistics.median(getattr(one, stage) for one in metrics), 3)
                for stage in ("fetch_s", "embed_s", "decode_s", "write_s")
            },
            "cpu_s a job": round(cpu_s / done.jobs, 3),
            "servers' cpu_s a job": round(else_s / done.jobs, 3),
            "cores busy": round(cores, 2) if cores is not None else None,
        }


def cpu_s_of(pid: int, *, besides: int | None = None) -> float:
    """Return the processor time of a process and those that it started.  besides: the one that is left out with its."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    total = sum(one.user + one.system for one in times)
    return total - cpu_s_of(besides) if besides is not None else total


def busy_s(folder: Path, began: float, ended: float) -> float:
    """Sum the device's computing time between two moments."""
    total = 0.0
    for log in folder.glob("busy-*.log"):
        for line in log.read_text().splitlines():
            start, seconds = map(float, line.split())
            total += max(0.0, min(start + seconds, ended) - max(start, began))
    return total


if __name__ == "__main__":
    main()
