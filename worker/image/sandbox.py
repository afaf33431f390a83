"""Decodes images in a process of its own: a file that crashes a decoder ends that process and not the worker."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.logs import get_logger
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.image.sandbox_process import BAND, END, PART, PLACE, REFUSED, REQUEST, SIZE

logger = get_logger()

COMMAND = (sys.executable, "-m", "maskfleet.worker.image.sandbox_process")
#: A 100 MP image of the slowest format takes some seconds.  The process ends itself after this time.
DECODE_TIMEOUT_S = 60.0
#: One that has not ended itself by then, because it is stopped or does not keep to the rules, is killed.
KILL_GRACE_S = 5.0
#: How often whoever waits for an image asks whether it is still wanted.
LOOK_S = 0.1
#: All that the process is told: where its code is.  No key, no secret, no address.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
#: Linux gives a pipe 64 kB, which makes two processes take turns; it allows anyone 1 MB.
_PIPE_BYTES = 2**20
#: A refusal or a size is shorter than this.
_JSON_BYTES = 2**16


class _Ended(Exception):
    """The process ended in the midst of an answer, or its answer makes no sense."""


class _Hangs(Exception):
    """The process neither answers nor ends in time."""


def _go_on() -> None:
    """Nobody stops it."""


class Sandbox:
    """One decoding process, kept from image to image; a new one takes its place when it has ended.

    For one thread, with which it ends.  command: what to start.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        timeout_s: float = DECODE_TIMEOUT_S,
        kill_grace_s: float = KILL_GRACE_S,
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._kill_grace_s = kill_grace_s
        self._kill_at = 0.0
        self._check = _go_on
        self._process = self._start()

    def decode(self, data: bytes, max_pixels: int, check: Callable[[], None] = _go_on) -> Photo:
        """Decode an image, as `decode.decode_photo` does.

        check: asked again and again; what it raises ends the process at once, and is raised.
        Raises InvalidImage: its codes, and ``image_crashes_decoder`` when a new process ended over it as well, or
        ``image_takes_too_long``.
        """
        self._check = check
        try:
            # The first may have been harmed by an earlier image, or killed from outside: that blames nobody.
            photo = self._try(data, max_pixels) or self._try(data, max_pixels)
        except InvalidImage:
            raise
        except BaseException:  # what is left of the answer must not be taken for the next one's
            self._process.kill()
            self._replace()
            raise
        if photo is None:
            raise InvalidImage(
                "image_crashes_decoder", "This file crashes the image decoder. Re-save the image and try again."
            )
        return photo

    def _try(self, data: bytes, max_pixels: int) -> Photo | None:
        """Ask once; None, with a new process in place, when the process ended."""
        if self._process.poll() is not None:
            self._replace()  # it ends by itself when a file has left much behind
        try:
            return self._ask(data, max_pixels)
        except (_Ended, _Hangs, BrokenPipeError) as error:
            status = self._replace()
            logger.warning("decoder_ended", status=status)
            if isinstance(error, _Hangs) or status == -signal.SIGALRM:
                raise InvalidImage(
                    "image_takes_too_long",
                    f"The image was not decoded within {self._timeout_s:g} s. Re-save or downscale it and try again.",
                ) from error
            return None

    def _replace(self) -> int:
        status = self.close()
        self._process = self._start()
        return status

    def close(self) -> int:
        """End the process; give its status."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(1)  # it has ended, or ends as it hears no more
        self._process.kill()
        return self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603  the command is our own
            self._command,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(_descriptor(pipe), False)
            if sys.platform == "linux":
                import fcntl

                with suppress(OSError):  # as large as it is, then
                    fcntl.fcntl(_descriptor(pipe), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _ask(self, data: bytes, max_pixels: int) -> Photo:
        self._kill_at = time.monotonic() + self._timeout_s + self._kill_grace_s
        self._send(REQUEST.pack(len(data), max_pixels, self._timeout_s))
        self._send(data)
        pixels: npt.NDArray[np.uint8] | None = None
        file_format = ""
        while True:
            kind, length = PART.unpack(self._read(PART.size))
            if kind == REFUSED:
                refusal = self._read_json(length)
                raise InvalidImage(str(refusal["code"]), str(refusal["detail"]))
            if kind == SIZE:
                head = self._read_json(length)
                (width, height), file_format = head["size_wh"], str(head["format"])
                if not (0 < width <= max_pixels and 0 < height <= max_pixels // width):
                    raise _Ended
                # Zeros: whatever the process leaves out is none of this process's memory.
                pixels = np.zeros((height, width, 3), np.uint8)
            elif kind == BAND and pixels is not None:
                self._read_band(pixels)
            elif kind == END and pixels is not None:
                return Photo(pixels, (pixels.shape[1], pixels.shape[0]), file_format)
            else:
                raise _Ended

    def _read_band(self, pixels: npt.NDArray[np.uint8]) -> None:
        top, left, height, width = PLACE.unpack(self._read(PLACE.size))
        there = pixels[top : top + height, left : left + width]
        if there.size == 0 or there.shape[:2] != (height, width):
            raise _Ended
        if there.flags.c_contiguous:
            self._read_into(there.data.cast("B"))
        else:
            band = np.empty_like(there, order="C")
            self._read_into(band.data.cast("B"))
            there[:] = band

    def _read_json(self, length: int) -> Any:  # Any: JSON
        if length > _JSON_BYTES:
            raise _Ended
        return json.loads(self._read(length))

    def _read(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._read_into(memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, buffer: memoryview) -> None:
        while buffer:
            self._await(self._stdout, select.POLLIN)
            count = os.readv(self._stdout, [buffer])
            if count == 0:
                raise _Ended
            buffer = buffer[count:]

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._await(self._stdin, select.POLLOUT)
            with suppress(BlockingIOError):  # less room than a page: poll and write see that differently
                rest = rest[os.write(self._stdin, rest) :]

    def _await(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while True:
            self._check()
            left_s = max(0.0, self._kill_at - time.monotonic())
            if poll.poll(min(left_s, LOOK_S) * 1000):
                return
            if left_s == 0:
                self._process.kill()
                raise _Hangs

    @property
    def _stdin(self) -> int:
        return _descriptor(self._process.stdin)

    @property
    def _stdout(self) -> int:
        return _descriptor(self._process.stdout)


def _descriptor(pipe: Any) -> int:  # Any: subprocess' own
    number: int = pipe.fileno()
    return number
