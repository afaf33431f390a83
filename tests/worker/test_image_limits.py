"""Decoding in a separate process: what a file can do to that process, and what it cannot do to the worker."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from maskfleet.jobs.errors import InvalidImage, NodeFault
from maskfleet.jobs.schema.record import Metrics, Status
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.worker.app import workbench_for
from maskfleet.worker.attempt import Workbench, attempt_next
from maskfleet.worker.image.decode import decode_photo
from maskfleet.worker.image.sandbox import KNOWN_IMAGE, Sandbox
from maskfleet.worker.image.sandbox_process import BAND, END, PART, PLACE, REQUEST, SIZE
from maskfleet.worker.output.artifacts import Segmented
from tests.waiting import wait_until
from tests.worker.test_attempt import read, upload
from tests.worker.test_images import corners, written

MAX_PIXELS = 20_000_000
CRASHING = (sys.executable, "-m", "tests.worker.crashing_decoder")
LEAKING = (sys.executable, "-m", "tests.worker.leaking_decoder")

#: What the decoder responds to KNOWN_IMAGE: one black pixel.
KNOWN_ANSWER = b"".join(
    (
        *(PART.pack(SIZE, 33), b'{"size_wh": [1, 1], "format": ""}'),
        *(PART.pack(BAND, 0), PLACE.pack(0, 0, 1, 1), bytes(3), PART.pack(END, 0)),
    )
)

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory, and no /proc")


@pytest.fixture
def crashing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox whose GIF decoder crashes."""
    monkeypatch.chdir(repository)
    with closing(Sandbox(CRASHING)) as sandbox:
        yield sandbox


def fault_of(sandbox: Sandbox, data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(InvalidImage) as refused:
        sandbox.decode(data, max_pixels)
    return refused.value.code


@pytest.mark.parametrize("name", ["coins.png", "chelsea.jpg", "rocket.jpg"])
def test_the_pixels_are_those_of_decoding_in_this_process(sandbox: Sandbox, repository: Path, name: str) -> None:
    data = (repository / "examples" / name).read_bytes()

    here, apart = decode_photo(data, MAX_PIXELS), sandbox.decode(data, MAX_PIXELS)

    assert np.array_equal(here.pixels, apart.pixels)
    assert (here.size_wh, here.format) == (apart.size_wh, apart.format)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("rows", [1700, 3000])
def test_a_picture_of_several_bands_is_put_together_as_it_is_turned(
    sandbox: Sandbox, orientation: int, rows: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (rows, 1500, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.transpose(1, 0, 2),
        6: noise[::-1].transpose(1, 0, 2),
        7: noise[::-1, ::-1].transpose(1, 0, 2),
        8: noise[:, ::-1].transpose(1, 0, 2),
    }[orientation]

    data = written(Image.fromarray(noise), "PNG", exif=exif, compress_level=0)

    assert np.array_equal(sandbox.decode(data, MAX_PIXELS).pixels, turned)


def test_a_file_that_crashes_the_decoder_is_refused_and_the_next_one_decoded(crashing: Sandbox) -> None:
    assert crashing.decode(written(corners(), "PNG"), MAX_PIXELS).size_wh == (64, 48)
    assert fault_of(crashing, written(corners(), "GIF")) == "image_crashes_decoder"
    assert crashing.decode(written(corners(), "PNG"), MAX_PIXELS).size_wh == (64, 48)


def test_a_job_whose_image_crashes_the_decoder_fails_and_the_next_one_is_done(
    bench: Workbench, crashing: Sandbox, coins: bytes
) -> None:
    bench = dataclasses.replace(bench, sandbox=crashing)
    poisoned, good = upload(bench, written(corners(), "GIF")), upload(bench, coins)

    attempt_next(bench)
    attempt_next(bench)

    record = read(bench, poisoned)
    assert record.error is not None
    assert (record.status, record.attempt, record.error.code) == (Status.FAILED, 1, "image_crashes_decoder")
    assert read(bench, good).status is Status.SUCCEEDED


def test_a_job_that_is_canceled_as_its_image_is_decoded_ends_at_once_and_the_next_one_is_done(
    bench: Workbench, coins: bytes, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    begun = tmp_path / "begun"
    with closing(Sandbox((sys.executable, "-m", "tests.worker.hanging_decoder", str(begun)))) as hanging:
        settings = bench.settings.model_copy(update={"beat_s": 0.05, "stop_grace_s": 600})
        bench = dataclasses.replace(bench, sandbox=hanging, settings=settings)
        hangs, good = upload(bench, written(corners(), "GIF")), upload(bench, coins)
        decoder = hanging._process
        attempt = threading.Thread(target=attempt_next, args=(bench,))
        attempt.start()
        wait_until(begun.exists, 30)
        assert decoder.poll() is None

        bench.ledger.cancel(hangs, "ant")

        attempt.join(30)  # half of the decoder's limit
        assert not attempt.is_alive()
        assert read(bench, hangs).status is Status.CANCELED
        assert decoder.returncode == -signal.SIGKILL
        attempt_next(bench)
        assert read(bench, good).status is Status.SUCCEEDED


def test_a_decoder_that_is_killed_from_outside_blames_no_image() -> None:
    with closing(Sandbox()) as sandbox:
        os.kill(sandbox._process.pid, signal.SIGKILL)

        assert sandbox.decode(written(corners(), "PNG"), MAX_PIXELS).size_wh == (64, 48)


def test_an_image_that_takes_too_long_is_refused_and_the_next_one_decoded() -> None:
    slow = written(Image.new("L", (10_000, 10_000)), "PNG", compress_level=1)
    with closing(Sandbox(timeout_s=0.3)) as sandbox:
        assert fault_of(sandbox, slow, 10**8) == "image_takes_too_long"
        wait_until(lambda: decoded(sandbox, written(corners(), "PNG")), 30)


def test_a_decoder_that_hears_nothing_any_more_is_killed_and_the_next_image_decoded() -> None:
    with closing(Sandbox(timeout_s=2, kill_grace_s=0)) as sandbox:
        stopped = sandbox._process
        os.kill(stopped.pid, signal.SIGSTOP)

        assert fault_of(sandbox, bytes(2**22)) == "image_takes_too_long"
        assert stopped.returncode == -signal.SIGKILL
        wait_until(lambda: decoded(sandbox, written(corners(), "PNG")), 30)


#: A program that responds to the known image as the decoder does, and to any other with its first argument.
ANSWERING = f"""import sys
data = sys.stdin.buffer.read({REQUEST.size} + 8)[{REQUEST.size}:]
sys.stdout.buffer.write({KNOWN_ANSWER!r} if data == {KNOWN_IMAGE[:8]!r} else bytes.fromhex(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "answer",
    [
        b"?" * 100,
        PART.pack(BAND, 0),
        PART.pack(END, 0),
        PART.pack(SIZE, 2**60),
        PART.pack(SIZE, 43) + b'{"size_wh": [100000, 100000], "format": ""}',
        PART.pack(SIZE, 33) + b'{"size_wh": [2, 2], "format": ""}' + PART.pack(BAND, 0) + PLACE.pack(1, 1, 2, 2),
        PART.pack(SIZE, 33) + b'{"size_wh": [2, 2], "format": ""}' + PART.pack(BAND, 0) + PLACE.pack(0, 0, 0, 2),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_crash(answer: bytes) -> None:
    with closing(Sandbox((sys.executable, "-c", ANSWERING, answer.hex()))) as sandbox:
        assert fault_of(sandbox, b"an image") == "image_crashes_decoder"


def test_a_decoder_that_never_makes_sense_is_the_nodes_fault() -> None:
    program = f"import sys; sys.stdin.buffer.read({REQUEST.size}); sys.stdout.buffer.write(b'?' * 100)"
    with closing(Sandbox((sys.executable, "-c", program))) as sandbox, pytest.raises(NodeFault, match="decoder_broken"):
        sandbox.decode(b"an image", MAX_PIXELS)


@only_linux
def test_a_decoder_in_which_a_file_left_much_behind_makes_room_for_a_new_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    with closing(Sandbox(LEAKING)) as sandbox:
        first = sandbox._process
        assert sandbox.decode(written(corners(), "BMP"), MAX_PIXELS).size_wh == (64, 48)

        assert first.wait(10) == 0
        assert sandbox._process is not first  # started already: the next image does not wait for it
        for _ in range(3):
            assert sandbox.decode(written(corners(), "BMP"), MAX_PIXELS).size_wh == (64, 48)


def test_a_decoder_that_is_warm_has_decoded(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program = f"""import sys, pathlib
head = sys.stdin.buffer.read({REQUEST.size} + {len(KNOWN_IMAGE)})
pathlib.Path(sys.argv[1]).touch()
sys.stdout.buffer.write({KNOWN_ANSWER!r})
sys.stdout.flush()
sys.stdin.buffer.read()
"""
    with closing(Sandbox((sys.executable, "-c", program, str(asked)))) as sandbox:
        sandbox.warm_up()

        assert asked.exists()


@only_linux
def test_a_worker_that_is_loaded_has_a_warm_decoder(worker_settings: WorkerSettings) -> None:
    bench = workbench_for(lambda *_: Segmented((), Metrics(), iter(())), worker_settings)

    with closing(bench.sandbox) as sandbox:
        assert sandbox._process.poll() is None
        assert psutil.Process(sandbox._process.pid).io_counters().write_chars > 0  # it has answered


@only_linux
@pytest.mark.parametrize("side", [16_000, 40_000])
def test_a_small_picture_that_unpacks_to_gigabytes_is_stopped_by_the_limit(sandbox: Sandbox, side: int) -> None:
    assert fault_of(sandbox, a_tiff_of_one_tile(side)) == "image_needs_too_much_memory"
    assert _status(sandbox, "VmHWM") < 2**30


@only_linux
def test_a_large_image_takes_one_copy_of_it_apart_and_one_here() -> None:
    data = written(Image.new("RGB", (5184, 3456)), "PNG", compress_level=1)
    with closing(Sandbox()) as sandbox:
        sandbox.decode(written(corners(), "PNG"), MAX_PIXELS)
        before = _status(sandbox, "VmHWM")

        photo = sandbox.decode(data, MAX_PIXELS)

        # Pillow keeps 4 bytes per pixel, our copy 3.
        assert _status(sandbox, "VmHWM") - before < photo.pixels.nbytes * 4 / 3 + 40 * 2**20
        wait_until(lambda: _status(sandbox, "VmRSS") - before < 40 * 2**20)


@only_linux
def test_the_decoder_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKFLEET_S3_SECRET_KEY", "a-secret")
    with closing(Sandbox()) as sandbox:
        sandbox.decode(written(corners(), "PNG"), MAX_PIXELS)
        told = Path(f"/proc/{sandbox._process.pid}/environ").read_bytes()

    assert b"MASKFLEET" not in told
    assert b"a-secret" not in told


def test_the_decoder_ends_when_it_is_told() -> None:
    sandbox = Sandbox()

    assert sandbox.close() == 0


@only_linux
def test_the_decoder_ends_with_its_worker_in_the_midst_of_an_image(tmp_path: Path) -> None:
    image = tmp_path / "slow.png"
    image.write_bytes(written(Image.new("L", (10_000, 10_000)), "PNG", compress_level=1))
    program = f"""
from pathlib import Path
from maskfleet.worker.image.sandbox import Sandbox
sandbox = Sandbox()
print(sandbox._process.pid, flush=True)
while True:
    sandbox.decode(Path({str(image)!r}).read_bytes(), 10**8)
"""
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    with worker.stdout:
        decoder = psutil.Process(int(worker.stdout.readline()))
    wait_until(lambda: decoder.cpu_times().user > 1, 30)

    worker.kill()
    worker.wait()

    wait_until(lambda: not decoder.is_running() or decoder.status() == "zombie")


def decoded(sandbox: Sandbox, data: bytes) -> bool:
    """Return whether it is decoded within this sandbox's short time limit: not always on a busy machine."""
    try:
        return sandbox.decode(data, MAX_PIXELS).size_wh == (64, 48)
    except InvalidImage:
        return False


def a_tiff_of_one_tile(side: int) -> bytes:
    """Return a TIFF of 16×16 pixels, in one tile of side×side zeros."""
    packed = zlib.compress(bytes(2**16))
    entries: list[tuple[int, int, int]] = [
        (256, 3, 16),
        (257, 3, 16),
        (258, 3, 8),
        (259, 3, 8),  # deflate
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, side),
        (323, 4, side),
        (324, 4, 0),
        (325, 4, len(packed)),
    ]
    after = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, after if tag == 324 else value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + packed


def _status(sandbox: Sandbox, name: str) -> int:
    """Return a memory figure of the process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{sandbox._process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
