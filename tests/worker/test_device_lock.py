"""The lock of a device that several workers share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import EverythingJob, EverythingParams, ImageSource, PointJob
from maskfleet.jobs.status import Stage
from maskfleet.worker.device_lock import NOT_SHARED, DeviceLock, lock_of
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.segment import segment

IMAGE = ImageSource(upload_id="upl_" + "0" * 32)
GRID = EverythingJob(mode="everything", image=IMAGE, params=EverythingParams(points_per_crop=2))
POINT = PointJob(mode="point", image=IMAGE, prompts=(Prompt(points=((8, 8),)),))
#: Takes the lock, says so, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from maskfleet.worker.device_lock import DeviceLock
lock = DeviceLock(Path(sys.argv[1]))
with lock.wanted():
    lock.take(lambda: None)
    print("held", flush=True)
    time.sleep(300)
"""


class Stopped(Exception):
    pass


class StopsWhileWaiting:
    """A watch that ends a job which is told more than once that it embeds: it waits."""

    def __init__(self) -> None:
        self.told = 0

    def stage(self, stage: Stage) -> None:
        self.told += stage is Stage.EMBEDDING
        if self.told > 3:
            raise Stopped

    def batch(self, done: int, total: int, masks: int) -> None:
        pass


def ignored() -> None:
    pass


def stop() -> None:
    raise Stopped


def test_one_computes_and_the_next_begins_when_it_is_done(tmp_path: Path) -> None:
    one, other = DeviceLock(tmp_path / "lock"), DeviceLock(tmp_path / "lock")
    order: list[str] = []
    waits = threading.Event()

    def compute() -> None:
        with other.wanted():
            other.take(waits.set)
            order.append("other")

    thread = threading.Thread(target=compute)
    with one.wanted():
        one.take(ignored)
        thread.start()
        assert waits.wait(10)
        one.take(ignored)  # of the same job's next crop, or batch
        order.append("one")
    thread.join(10)

    assert order == ["one", "other"]


def test_who_is_to_stop_stops_while_it_waits_and_leaves_nothing_locked(tmp_path: Path) -> None:
    one, other = DeviceLock(tmp_path / "lock"), DeviceLock(tmp_path / "lock")

    with one.wanted():
        one.take(ignored)
        with pytest.raises(Stopped), other.wanted():
            other.take(stop)
    with one.wanted():
        one.take(stop)  # free


def test_a_worker_that_waited_for_long_goes_on_and_does_not_let_go_of_what_another_holds(tmp_path: Path) -> None:
    one, late, other = DeviceLock(tmp_path / "lock"), DeviceLock(tmp_path / "lock", 0.01), DeviceLock(tmp_path / "lock")

    with one.wanted():
        one.take(ignored)
        with late.wanted():
            late.take(ignored)
        with pytest.raises(Stopped), other.wanted():
            other.take(stop)


def test_a_worker_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = DeviceLock(file)
        with pytest.raises(Stopped), lock.wanted():
            lock.take(stop)
        os.kill(holder.pid, signal.SIGKILL)

    with lock.wanted():
        lock.take(stop)


@pytest.mark.parametrize(("spec", "waits"), [(GRID, True), (POINT, False)], ids=["a grid", "a click"])
def test_a_grid_of_points_waits_for_the_device_and_a_click_does_not(
    tmp_path: Path, model: SegmentationModel, spec: Spec, waits: bool
) -> None:
    photo = Photo(np.zeros((16, 16, 3), np.uint8), (16, 16), "PNG")
    held, lock = DeviceLock(tmp_path / "lock"), DeviceLock(tmp_path / "lock")

    with held.wanted():
        held.take(ignored)
        try:
            segment(photo, spec, model, StopsWhileWaiting(), device_lock=lock)
            waited = False
        except Stopped:
            waited = True

    assert waited == waits
    segment(photo, spec, model, StopsWhileWaiting(), device_lock=lock)  # it is free again


def test_slots_of_one_device_have_one_lock_and_a_device_of_one_worker_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert lock_of("sam-gpu0@here", 1) is NOT_SHARED
    for node in ("sam-gpu0.0@here", "sam-gpu0.1@here", "sam-gpu1.0@here"):
        lock_of(node, 2)
    assert len(list(tmp_path.iterdir())) == 2
