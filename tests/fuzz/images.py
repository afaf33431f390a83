"""Feed damaged files to both parsers of callers' images: the API's header parser and the worker's decoder.

    python -m tests.fuzz.images --count 10000 --seed 1 --keep

Every file must be accepted by both, or refused with a known code, in bounded memory and time; and the two must
agree: the decoder confirms what the header parser refuses, and the size it reports.
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import keep, percentile
from maskfleet.api.image_header import ImageHeader, read_header
from maskfleet.jobs.errors import InvalidImage
from maskfleet.worker.image.decode import Photo
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.image.sandbox_process import BYTES_PER_PIXEL, ELSE_BYTES, FILE_COPIES
from tests.fuzz.mutations import mutated, valid_files

#: The codes a file may be refused with.
HEADER_CODES = {"image_empty", "not_an_image", "image_too_large", "image_truncated"}
DECODER_CODES = HEADER_CODES | {
    "image_corrupt",
    "image_crashes_decoder",
    "image_needs_too_much_memory",
    "image_takes_too_long",
    "image_unsupported",
}
#: What a job may end with, and no file of these has to.
NOT_EXPECTED = {"image_crashes_decoder", "image_takes_too_long"}
#: Low enough that forged headers exceed it, and that the largest image allowed is decoded quickly.
MAX_PIXELS = 4_000_000


@dataclass(slots=True)
class Findings:
    """The outcome for the files.  faults: what must not happen, each with the number of its file."""

    header: Counter[str] = field(default_factory=Counter)
    decoder: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    #: Memory of the decoding processes: the first one's before any file, the peak of any, and the limit.
    idle_bytes: int = 0
    peak_bytes: int = 0
    allowed_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(count: int, seed: int) -> Findings:
    """Check ``count`` files."""
    findings, files = Findings(), valid_files()
    with closing(Sandbox()) as sandbox:
        sandbox.decode(files[0], MAX_PIXELS)
        findings.idle_bytes = memory(sandbox, "VmRSS")
        for number in range(count):
            data = mutated(files, seed, number)
            header, decoded = look_at_header(data), decode(data, sandbox, findings)
            findings.header[header if isinstance(header, str) else "accepted"] += 1
            findings.decoder[decoded if isinstance(decoded, str) else "accepted"] += 1
            findings.faults += (f"{seed} {number}: {fault}" for fault in faults(header, decoded))
            findings.peak_bytes = max(findings.peak_bytes, memory(sandbox, "VmHWM"))
            share = FILE_COPIES * len(data) + BYTES_PER_PIXEL * MAX_PIXELS + ELSE_BYTES
            findings.allowed_bytes = max(findings.allowed_bytes, findings.idle_bytes + share)
    if findings.peak_bytes > findings.allowed_bytes:
        findings.faults.append(f"{findings.peak_bytes} bytes were used; {findings.allowed_bytes} are allowed")
    return findings


def look_at_header(data: bytes) -> ImageHeader | str:
    """Return the header, or the code of the refusal, or whatever else was raised."""
    try:
        return read_header(data, MAX_PIXELS)
    except InvalidImage as error:
        return error.code
    except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
        return repr(error)


def decode(data: bytes, sandbox: Sandbox, findings: Findings) -> Photo | str:
    """Do the same for the decoder; record its time."""
    started = time.perf_counter()
    try:
        return sandbox.decode(data, MAX_PIXELS)
    except InvalidImage as error:
        return error.code
    except Exception as error:  # noqa: BLE001  as above
        return repr(error)
    finally:
        findings.seconds.append(time.perf_counter() - started)


def faults(header: ImageHeader | str, decoded: Photo | str) -> list[str]:
    """Return what must not have happened."""
    found = []
    if isinstance(header, str) and header not in HEADER_CODES:
        found.append(f"the header parser: {header}")
    if isinstance(decoded, str) and (decoded not in DECODER_CODES or decoded in NOT_EXPECTED):
        found.append(f"the decoder: {decoded}")
    if isinstance(header, str) and isinstance(decoded, Photo):
        found.append(f"the API says {header}, but it can be decoded")
    if isinstance(header, ImageHeader) and isinstance(decoded, Photo) and header.size_wh not in (None, decoded.size_wh):
        found.append(f"the API says {header.size_wh}, the decoder {decoded.size_wh}")
    return found


def memory(sandbox: Sandbox, name: str) -> int:
    """Return a memory figure of the decoding process in bytes; 0 if it has just exited, or without /proc."""
    status = Path(f"/proc/{sandbox._process.pid}/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text() if status.exists() else "")
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged files, sent where images go.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/image_fuzz.json")
    options = parser.parse_args()
    started = time.perf_counter()
    findings = fuzz(options.count, options.seed)
    figures = {
        "files": options.count,
        "valid_files_they_were_made_of": len(valid_files()),
        "max_pixels": MAX_PIXELS,
        "header": dict(findings.header.most_common()),
        "decoder": dict(findings.decoder.most_common()),
        "faults": len(findings.faults),
        "decoder_idle_mib": round(findings.idle_bytes / 2**20, 1),
        "decoder_peak_mib": round(findings.peak_bytes / 2**20, 1),
        "decoder_allowed_mib": round(findings.allowed_bytes / 2**20, 1),
        "this_process_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "decoder_ms": {
            "p50": round(1000 * percentile(findings.seconds, 50), 2),
            "p99": round(1000 * percentile(findings.seconds, 99), 2),
            "max": round(1000 * max(findings.seconds), 2),
        },
        "all_s": round(time.perf_counter() - started, 1),
    }
    if options.keep:
        keep("image_fuzz", f"python -m tests.fuzz.images --count {options.count} --seed {options.seed} --keep", figures)
    else:
        print(figures)
    for fault in findings.faults:
        print(fault)
    sys.exit(1 if findings.faults else 0)


if __name__ == "__main__":
    main()
