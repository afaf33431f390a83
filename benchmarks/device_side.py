"""A worker node whose device is a stand-in: ``python -m benchmarks.device_side node``; with ``fleet``, several.

The device is a queue: it computes for one node after another, each for as long as a card would, and does one thing at a
time.  What it would compute is recorded the first time that the model sees an image, and replayed.  All else is the
worker's own code: Celery, the ledger, the store, the decoder of images, scaling, masks and their outputs.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any  # Any: what the encoder returns

import torch
from torch import Tensor

from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.app import main, workbench_for
from maskfleet.worker.device_lock import lock_of
from maskfleet.worker.masks import mask
from maskfleet.worker.node.fleet import run_fleet
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.embedding import Embedding
from maskfleet.worker.sam.families.sam import Sam
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.sam.prompts import PromptBatch
from maskfleet.worker.sam.reference import BatchSlot
from maskfleet.worker.segment_step import segment_and_format

if TYPE_CHECKING:
    from maskfleet.worker.attempt import Workbench

#: The folder of the queue and of the log, and the card's seconds for an image and for a batch of 64 points, as JSON.
FOLDER, CARD = "BENCH_DEVICE_FOLDER", "BENCH_DEVICE_CARD"
POINTS = 64
_MOMENT = struct.Struct("d")


class Device:
    """The card: it does what nodes send it one after another, without a pause while something waits.

    A file holds when it will be free, by the monotonic clock, which all processes of a machine share.  Each use is
    logged: when it begins, by the clock, and how long it takes.
    """

    def __init__(self, folder: Path) -> None:
        self._queue = os.open(folder / "device", os.O_RDWR | os.O_CREAT, 0o600)
        self._log = (folder / f"busy-{os.getpid()}.log").open("a", buffering=1)

    @contextmanager
    def computing(self, seconds: float) -> Iterator[None]:
        """Have the card compute for so long after what was sent before; wait until it has."""
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            now, queued = time.monotonic(), os.pread(self._queue, _MOMENT.size, 0)
            begins = max(now, *_MOMENT.unpack(queued)) if queued else now
            os.pwrite(self._queue, _MOMENT.pack(begins + seconds), 0)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        self._log.write(f"{time.time() + begins - now} {seconds}\n")
        yield
        time.sleep(max(0.0, begins + seconds - time.monotonic()))


class OnDevice(Sam):
    """The demo checkpoint's network, as if it were a larger one on a card."""

    def on(self, device: Device, encoder_s: float, batch_s: float) -> OnDevice:
        self._device, self._encoder_s, self._batch_s = device, encoder_s, batch_s
        self._recorded: dict[Hashable, Any] = {}
        self._image: Hashable = None
        return self

    def encode(self, values: Tensor) -> Any:
        with self._device.computing(self._encoder_s):
            self._image = hash(values[0, :, ::16, ::16].numpy().tobytes())
            return self._replay(("image",), partial(super().encode, values))

    def prepared(self, embeddings: Any) -> Any:
        return self._replay(("prepared",), partial(super().prepared, embeddings))

    def decode(self, embedding: Embedding, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        with self._device.computing(self._batch_s * len(batch.indices) / POINTS):
            decode = partial(super().decode, embedding, batch, multimask=multimask)
            return self._replay_candidates((batch.indices, multimask), decode)

    def decode_in_slot(
        self, embedding: Embedding, prompt: PromptBatch, slot: BatchSlot, *, multimask: bool = True
    ) -> Candidates:
        # By itself, with as many rows as a batch: it takes no longer than one.
        with self._device.computing(self._batch_s):
            decode = partial(super().decode_in_slot, embedding, prompt, slot, multimask=multimask)
            return self._replay_candidates((prompt.indices, slot, multimask), decode)

    def _replay(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if (self._image, key) not in self._recorded:
            self._recorded[self._image, key] = compute()
        return self._recorded[self._image, key]

    def _replay_candidates(self, key: Hashable, compute: Callable[[], Candidates]) -> Candidates:
        """Replay scores and masks; masks as they are asked for, since most never are."""
        candidates: Candidates = self._replay(key, compute)

        def logits(rows: Tensor, columns: Tensor) -> Tensor:
            asked = (tuple(rows.tolist()), tuple(columns.tolist()))
            made: Tensor = self._replay((key, asked), lambda: candidates.logits(rows, columns))
            return made

        return Candidates(candidates.predicted_iou, logits, candidates.object_score)


def make_workbench(settings: WorkerSettings) -> Workbench:
    torch.set_num_threads(settings.torch_threads)
    family = load_model(settings.model, "cpu").family
    device = Device(Path(os.environ[FOLDER]))
    on_device = OnDevice(family.network, family.preprocessing).on(device, *json.loads(os.environ[CARD]))
    mask.warm_up()
    # Not a CPU: so masks are measured beside the device's work, as with a card.
    model = SegmentationModel(settings.model_name, on_device, torch.device("meta"))
    device_lock = lock_of(settings.node, settings.slots_per_device)
    return workbench_for(partial(segment_and_format, model, device_lock=device_lock), settings)


if __name__ == "__main__":
    if sys.argv[1] == "fleet":
        run_fleet("cpu", os.environ, WorkerSettings(), [sys.executable, "-m", "benchmarks.device_side", "node"])
    else:
        main(make_workbench)
