"""The process that decodes callers' images: ``python -m maskfleet.worker.image.sandbox_process``, run by `sandbox`.

It has no secrets and no addresses, its memory and time per image are limited, and a crash in a native decoder ends
nothing else.  Requests arrive on stdin; responses go to the original stdout.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from maskfleet.jobs.errors import InvalidImage
from maskfleet.worker.image.decode import open_picture
from maskfleet.worker.image.values import Pixels

#: A request: the file's length, the pixel limit, and the time limit in seconds.  Then comes the file.
REQUEST = struct.Struct("<QQd")
#: Before each part of a response: its kind and length.
PART = struct.Struct("<cQ")
#: Kinds of parts: an error or the size, as JSON; a band of pixels; the end; the end of the last image of this process.
REFUSED, SIZE, BAND, END, LAST = b"r", b"s", b"b", b"e", b"l"
#: Before a band's pixels: top, left, height, width.
PLACE = struct.Struct("<4Q")

#: The most address space for each pixel of the largest image that is accepted, whatever a file needs: see
#: `pillow_picture` and `tiff`.
BYTES_PER_PIXEL = 16
#: Also for the file itself, which decoders copy, and for what depends on neither.
FILE_COPIES, ELSE_BYTES = 3, 192 * 2**20
#: linux/prctl.h
_PR_SET_PDEATHSIG = 1


def answer(data: bytes, max_pixels: int, used: int, out: BinaryIO) -> bool:
    """Decode one file within its memory limit; return whether another one may follow.

    used: address space that the process has without an image, in bytes.
    """
    refusal = _decode(data, max_pixels, used, out)
    _limit_address_space(resource.RLIM_INFINITY)  # the next file may be larger
    # Otherwise the next file would lack the memory that this one left in use.
    goes_on = _address_space() - used - len(data) <= ELSE_BYTES // 2
    if refusal is not None:
        _write(out, REFUSED, json.dumps({**refusal, "last": not goes_on}).encode())
    else:
        _write(out, END if goes_on else LAST)
    return goes_on


def _decode(data: bytes, max_pixels: int, used: int, out: BinaryIO) -> dict[str, str] | None:
    """Write the size and the pixels; return what is wrong with the file, if anything."""
    try:
        most = BYTES_PER_PIXEL * max_pixels
        _limit_memory(used, len(data), most)
        with open_picture(data, max_pixels) as picture:
            _limit_memory(used, len(data), min(picture.decoding_bytes, most))
            decoded = picture.decoded()
            head: dict[str, object] = {"size_wh": decoded.size_wh, "format": picture.format}
            if decoded.values is not None:
                head["values"] = asdict(decoded.values)
            if decoded.georeference is not None:
                head["georeference"] = asdict(decoded.georeference)
            _write(out, SIZE, json.dumps(head).encode())
            for band in decoded.bands:
                height, width = band.pixels.shape[:2]
                _write(out, BAND, PLACE.pack(*band.top_left, height, width), _bytes_of(band.pixels))
    except InvalidImage as error:
        return {"code": error.code, "detail": error.detail}
    return None


def main() -> None:
    """Handle requests until there are no more, or until the worker exits in any way."""
    if sys.platform == "linux":  # elsewhere a native call runs until its time limit
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the worker
    # Whatever the worker does on this signal, here it ends the process.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What libraries print about a file may be endless, and belongs neither in the responses nor in the log.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable()  # nor do log messages of Pillow
    Image.init()  # or the first image of a rare format would wait for it
    used = _address_space()
    while len(head := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        length, max_pixels, limit_s = REQUEST.unpack(head)
        data = sys.stdin.buffer.read(length)
        if len(data) < length:
            return
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its signal interrupts even a native call
        try:
            goes_on = answer(data, max_pixels, used, out)
        except BrokenPipeError:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not goes_on:
            return
        del data


def _bytes_of(pixels: Pixels) -> memoryview:
    """Return pixels as bytes, without a copy where their rows follow one another, as they do in most bands."""
    return np.ascontiguousarray(pixels).data.cast("B")


def _write(out: BinaryIO, kind: bytes, *parts: bytes | memoryview) -> None:
    """Write one part of a response; a pipe takes no more at a time than it can hold."""
    for part in (PART.pack(kind, sum(map(len, parts))), *parts):
        rest = memoryview(part)
        while rest:
            rest = rest[out.write(rest) :]


def _limit_memory(used: int, file_bytes: int, decoding_bytes: int) -> None:
    _limit_address_space(used + FILE_COPIES * file_bytes + decoding_bytes + ELSE_BYTES)


def _limit_address_space(limit: int) -> None:
    if sys.platform == "linux":  # elsewhere the limit does not exist or is not enforced
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY and not 0 <= limit <= most:
            limit = most
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _address_space() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
