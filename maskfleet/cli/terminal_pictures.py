"""Pictures in a terminal: by kitty's, iTerm2's or sixel's protocol, or as coloured half blocks.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, "Remote client"; iterm2.com/documentation-images.html; the VT340's
programmer reference, chapter 14.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

from maskfleet.jobs.image_types import image_format

if TYPE_CHECKING:
    from PIL import Image

#: Of base64 in one of kitty's escape codes.
_KITTY_CHUNK = 4096
#: Sixel pictures are no wider and higher than this, in pixels, so that they fit a usual window.
_SIXEL_WH = (800, 600)
_SIXEL_COLOURS = 256


class Protocol(StrEnum):
    """A way to show pictures in a terminal."""

    KITTY = "kitty"
    ITERM2 = "iterm2"
    SIXEL = "sixel"
    BLOCKS = "blocks"


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """Return what the terminal understands, by the variables that it sets; half blocks if in doubt."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return Protocol.BLOCKS  # it passes on none of the others by itself
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or "ghostty" in (term, program) or "ghostty" in term:
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm", "vscode") or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM2
    if term.startswith(("foot", "mlterm", "yaft", "contour")) or program in ("mintty", "mlterm") or "sixel" in term:
        return Protocol.SIXEL
    return Protocol.BLOCKS


def kitty(picture: bytes) -> str:
    """Return a picture as kitty's escape codes."""
    text = base64.b64encode(picture if image_format(picture) == "PNG" else _as_png(picture)).decode()
    chunks = [text[start : start + _KITTY_CHUNK] for start in range(0, len(text), _KITTY_CHUNK)]
    last = len(chunks) - 1
    codes = (
        f"\x1b_G{'a=T,f=100,' if number == 0 else ''}m={int(number < last)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )
    return "".join(codes) + "\n"


def iterm2(picture: bytes) -> str:
    """Return a picture, in any format, as iTerm2's escape code."""
    text = base64.b64encode(picture).decode()
    return f"\x1b]1337;File=inline=1;size={len(picture)};preserveAspectRatio=1:{text}\x07\n"


def sixel(picture: bytes) -> str:
    """Return a picture as sixels."""
    image = _opened(picture)
    image.thumbnail(_SIXEL_WH)
    paletted = image.quantize(_SIXEL_COLOURS)
    palette = paletted.getpalette() or []
    width, height = paletted.size
    pixels = paletted.tobytes()
    parts = [f'\x1bPq"1;1;{width};{height}']
    for number in range(len(palette) // 3):
        red, green, blue = (round(value * 100 / 255) for value in palette[3 * number : 3 * number + 3])
        parts.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        rows = [pixels[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        parts.append("$".join(f"#{colour}{_sixels(rows, colour)}" for colour in sorted(set(b"".join(rows)))))
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def blocks(picture: bytes, columns: int, lines: int) -> Text:
    """Return a picture as text: each character is two pixels, one above the other."""
    image = _opened(picture)
    image.thumbnail((max(1, columns), max(2, 2 * lines)))
    width, height = image.size
    pixels = image.tobytes()

    def colour(x: int, y: int) -> Color:
        start = 3 * (y * width + x)
        return Color.from_rgb(*pixels[start : start + 3])

    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            below = colour(x, y + 1) if y + 1 < height else None
            text.append("▀", Style(color=colour(x, y), bgcolor=below))
        text.append("\n")
    return text


def _sixels(rows: list[bytes], colour: int) -> str:
    """Return one colour's pixels in up to six rows, as run-length encoded characters."""
    columns = (sum((row[x] == colour) << bit for bit, row in enumerate(rows)) for x in range(len(rows[0])))
    return "".join(_run(value, length) for value, length in _runs(columns))


def _runs(values: Iterator[int]) -> Iterator[tuple[int, int]]:
    last, length = -1, 0
    for value in values:
        if value != last and length:
            yield last, length
            length = 0
        last, length = value, length + 1
    if last > 0:  # an empty end of a row need not be said
        yield last, length


def _run(value: int, length: int) -> str:
    char = chr(63 + value)
    return f"!{length}{char}" if length > 3 else char * length


def _as_png(picture: bytes) -> bytes:
    data = io.BytesIO()
    _opened(picture).save(data, "PNG")
    return data.getvalue()


def _opened(picture: bytes) -> Image.Image:
    from PIL import Image  # the client alone does not bring it

    return Image.open(io.BytesIO(picture)).convert("RGB")
