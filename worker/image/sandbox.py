"""Decode images in a separate process, so that a file that crashes a decoder does not crash the worker."""

from __future__ import annotations

import base64
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

from maskfleet.jobs.errors import InvalidImage, NodeFault
from maskfleet.jobs.logs import get_logger
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.image.georeference import Georeference, checked
from maskfleet.worker.image.sandbox_process import BAND, END, LAST, PART, PLACE, REFUSED, REQUEST, SIZE
from maskfleet.worker.image.values import ValueRange

logger = get_logger()

COMMAND = (sys.executable, "-m", "maskfleet.worker.image.sandbox_process")
#: A 100 MP image of the slowest format takes some seconds.  The process ends itself after this time.
DECODE_TIMEOUT_S = 60.0
#: A process that has not ended itself by then, because it is stopped or misbehaves, is killed.
KILL_GRACE_S = 5.0
#: How often ``check`` is called while an image is being decoded.
LOOK_S = 0.1
#: The whole environment of the process: where its code is.  No keys, no secrets, no addresses.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
#: Linux pipes hold 64 kB by default, which makes the two processes take turns; any user may set 1 MB.
_PIPE_BYTES = 2**20
#: The longest error or size message, in bytes.
_JSON_BYTES = 2**16


#: A black pixel, as PNG.
KNOWN_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


class _Ended(Exception):
    """The process ended in the middle of a response, or its response is malformed."""


class _Hangs(Exception):
    """The process neither responds nor ends in time."""


def _go_on() -> None:
    """Never stop."""


class Sandbox:
    """A decoding process, reused from image to image.  When it is killed or says that it ends, the next is started.

    For use by one thread; the process ends with that thread.  command: what to start.
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
        #: One that has said that it ends, and may not have ended yet.
        self._leaving: subprocess.Popen[bytes] | None = None

    def warm_up(self) -> None:
        """Wait until the process decodes, so that the first image need not; a fault is left for that to show."""
        self._works()

    def decode(self, data: bytes, max_pixels: int, check: Callable[[], None] = _go_on) -> Photo:
        """Decode an image, as `decode.decode_photo` does.

        check: called repeatedly; if it raises, the process is killed and the error passed on.
        Raises InvalidImage: the codes of `decode_photo`, ``image_crashes_decoder`` if a new process crashed on the file
        as well, or ``image_takes_too_long``.  Raises NodeFault (``decoder_broken``) if it does not decode any image.
        """
        self._check = check
        try:
            # The first process may have been damaged by an earlier image or killed from outside: that proves nothing.
            photo = self._try(data, max_pixels) or self._try(data, max_pixels)
        except InvalidImage:
            raise
        except BaseException:  # the rest of this response must not be read as part of the next one
            self._process.kill()
            self._replace()
            raise
        if photo is None and not self._works():
            raise NodeFault("decoder_broken", "The service's image decoder does not start.")
        if photo is None:
            raise InvalidImage(
                "image_crashes_decoder", "This file crashes the image decoder. Re-save the image and try again."
            )
        return photo

    def _works(self) -> bool:
        """Decode a known image: whether the process works at all."""
        try:
            return self._try(KNOWN_IMAGE, 1) is not None
        except InvalidImage:
            return False

    def _try(self, data: bytes, max_pixels: int) -> Photo | None:
        """Try once; if the process ended, replace it and return None."""
        if self._process.poll() is not None:
            self._replace()  # it exits by itself if a file has left too much memory behind
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

    def _succeed(self) -> None:
        """Start the next process now, as this one ends: the next image need not wait for it."""
        self._let_go()
        self._leaving, self._process = self._process, self._start()

    def _let_go(self) -> None:
        if self._leaving is not None:
            _end(self._leaving)
            self._leaving = None

    def _replace(self) -> int:
        status = self.close()
        self._process = self._start()
        return status

    def close(self) -> int:
        """End the process and return its exit status."""
        self._let_go()
        return _end(self._process)

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

                with suppress(OSError):  # then it keeps its size
                    fcntl.fcntl(_descriptor(pipe), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _ask(self, data: bytes, max_pixels: int) -> Photo:
        self._kill_at = time.monotonic() + self._timeout_s + self._kill_grace_s
        self._send(REQUEST.pack(len(data), max_pixels, self._timeout_s))
        self._send(data)
        pixels: npt.NDArray[np.uint8] | None = None
        file_format = ""
        values: ValueRange | None = None
        georeference: Georeference | None = None
        while True:
            kind, length = PART.unpack(self._read(PART.size))
            if kind == REFUSED:
                refusal = self._read_json(length)
                if refusal.get("last"):
                    self._succeed()
                raise InvalidImage(str(refusal["code"]), str(refusal["detail"]))
            if kind == SIZE:
                head = self._read_json(length)
                (width, height), file_format = head["size_wh"], str(head["format"])
                if not (0 < width <= max_pixels and 0 < height <= max_pixels // width):
                    raise _Ended
                values = ValueRange(**head["values"]) if "values" in head else None
                georeference = _georeference(head, (width, height))
                # Zeros: pixels that the process leaves out must not expose this process's memory.
                pixels = np.zeros((height, width, 3), np.uint8)
            elif kind == BAND and pixels is not None:
                self._read_band(pixels)
            elif kind in (END, LAST) and pixels is not None:
                if kind == LAST:
                    self._succeed()
                return Photo(pixels, (pixels.shape[1], pixels.shape[0]), file_format, values, georeference)
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
            with suppress(BlockingIOError):  # less than a page is free: poll and write disagree about that
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


def _georeference(head: Any, size_wh: tuple[int, int]) -> Georeference | None:  # Any: JSON
    try:
        return checked(head["georeference"], size_wh) if "georeference" in head else None
    except ValueError as error:
        raise _Ended from error


def _end(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(1)  # it has ended, or does so now that its stdin is closed
    process.kill()
    return process.wait()


def _descriptor(pipe: Any) -> int:  # Any: subprocess' own
    number: int = pipe.fileno()
    return number
