"""Base64 decoded in pieces is what the library makes of the whole."""

from __future__ import annotations

import base64
import random

import pytest

from maskfleet.jobs.schema.base64_text import PIECE, check_base64, decode_base64


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49151, 49152, 49153, 49154, 98304, 98305, 200_000])
def test_pieces_are_together_the_whole(size: int) -> None:
    data = random.Random(size).randbytes(size)

    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("at", [0, 1, PIECE - 4, PIECE - 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE + 2])
@pytest.mark.parametrize("sign", ["=", "==", "-", " ", "\n", "é", "%", ""])
def test_what_the_library_refuses_is_refused_wherever_it_is(sign: str, at: int) -> None:
    whole = base64.b64encode(bytes(range(256)) * 400).decode()
    text = whole[:at] + sign + whole[at + max(len(sign), 1) :]

    with pytest.raises(ValueError):  # noqa: PT011 — as the library
        base64.b64decode(text, validate=True)
    with pytest.raises(ValueError):  # noqa: PT011
        decode_base64(text)
    with pytest.raises(ValueError):  # noqa: PT011
        check_base64(text)
