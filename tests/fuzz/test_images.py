"""A few hundred damaged files; `make fuzz-images` sends ten thousand."""

from __future__ import annotations

from contextlib import closing

from maskfleet.api.image_header import ImageHeader, read_header
from maskfleet.worker.image.sandbox import Sandbox
from tests.fuzz.images import MAX_PIXELS, fuzz
from tests.fuzz.mutations import valid_files


def test_the_files_that_are_damaged_are_good() -> None:
    with closing(Sandbox()) as sandbox:
        for data in valid_files():
            assert isinstance(read_header(data, MAX_PIXELS), ImageHeader)
            assert sandbox.decode(data, MAX_PIXELS).pixels.size


def test_damaged_files_are_accepted_or_refused_with_a_code_in_bounded_memory() -> None:
    findings = fuzz(400, seed=2)

    assert findings.faults == []
    assert findings.decoder["accepted"] > 20
    assert {"image_corrupt", "image_truncated", "image_too_large", "not_an_image"} <= set(findings.decoder)
