"""Pictures in a terminal, read back as a terminal reads them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from maskfleet.cli.main import main
from maskfleet.cli.terminal_pictures import Protocol, blocks, iterm2, kitty, protocol_of, sixel

Image = pytest.importorskip("PIL.Image")

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(size: tuple[int, int] = (5, 8), file_format: str = "PNG") -> bytes:
    """A picture that is red above and blue below."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, size[1] // 2, *size))
    data = io.BytesIO()
    image.save(data, file_format, **({"quality": 100} if file_format == "JPEG" else {}))
    return data.getvalue()


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-ghostty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Protocol.ITERM2),
        ({"TERM": "foot"}, Protocol.SIXEL),
        ({"TERM": "xterm-256color"}, Protocol.BLOCKS),
        ({"TERM": "screen-256color", "TMUX": "1", "KITTY_WINDOW_ID": "1"}, Protocol.BLOCKS),
        ({}, Protocol.BLOCKS),
    ],
)
def test_the_protocol_is_the_terminals(environment: dict[str, str], protocol: Protocol) -> None:
    assert protocol_of(environment) is protocol


def test_kitty_gets_the_file_in_chunks_that_it_accepts() -> None:
    sent = Image.effect_noise((200, 100), 90)
    data = io.BytesIO()
    sent.save(data, "PNG")

    codes = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(data.getvalue()))

    assert base64.b64decode("".join(chunk for _, chunk in codes)) == data.getvalue()
    assert [control for control, _ in codes] == ["a=T,f=100,m=1", *["m=1"] * (len(codes) - 2), "m=0"]
    assert max(len(chunk) for _, chunk in codes) <= 4096
    assert all(len(chunk) % 4 == 0 for _, chunk in codes[:-1])


def test_kitty_gets_a_png_of_another_format() -> None:
    ((control, chunk),) = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(picture(file_format="WEBP")))

    assert control == "a=T,f=100,m=0"
    assert Image.open(io.BytesIO(base64.b64decode(chunk))).format == "PNG"


def test_iterm2_gets_the_file_as_it_is() -> None:
    jpeg = picture(file_format="JPEG")

    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);[^:]*:([^\x07]*)\x07\n", iterm2(jpeg))

    assert found
    assert int(found[1]) == len(jpeg)
    assert base64.b64decode(found[2]) == jpeg


def test_sixels_give_the_picture_back() -> None:
    text = sixel(picture((5, 8)))

    assert drawn(text) == {(x, y): RED if y < 4 else BLUE for x in range(5) for y in range(8)}


def test_a_large_picture_fits_the_window() -> None:
    found = re.match(r'\x1bPq"1;1;(\d+);(\d+)', sixel(picture((2048, 1024))))

    assert found
    assert (int(found[1]), int(found[2])) == (800, 400)


def drawn(text: str) -> dict[tuple[int, int], tuple[int, ...]]:
    """Draw sixels as the VT340 does; return the colour of each pixel."""
    body = re.fullmatch(r'\x1bPq"1;1;\d+;\d+(.*)\x1b\\\n', text, re.DOTALL)
    assert body
    colours: dict[int, tuple[int, ...]] = {}
    pixels: dict[tuple[int, int], tuple[int, ...]] = {}
    x = top = colour = 0
    for number, values, count, repeated, plain, end in re.findall(
        r"#(\d+)(?:;2;(\d+;\d+;\d+))?|!(\d+)([?-~])|([?-~])|([$-])", body[1]
    ):
        if values:
            colours[int(number)] = tuple(round(int(value) * 255 / 100) for value in values.split(";"))
        elif number:
            colour = int(number)
        elif end:
            x, top = 0, top + (6 if end == "-" else 0)
        else:
            bits = ord(repeated or plain) - 63
            columns = range(x, x + int(count or 1))
            pixels |= {(at, top + bit): colours[colour] for at in columns for bit in range(6) if bits >> bit & 1}
            x = columns.stop
    return pixels


def test_blocks_have_two_pixels_each() -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=40, file=io.StringIO())

    console.print(blocks(picture((3, 6)), 40, 20), end="")

    assert isinstance(console.file, io.StringIO)
    upper, both, lower = console.file.getvalue().splitlines()
    assert upper.count("▀") == both.count("▀") == 3
    assert "38;2;255;0;0" in upper
    assert "48;2;255;0;0" in upper
    assert "38;2;255;0;0" in both
    assert "48;2;0;0;255" in both
    assert "38;2;0;0;255" in lower


def test_a_picture_here_is_shown_and_a_folders_overlay_is_found(tmp_path: Path) -> None:
    (tmp_path / "overlay.webp").write_bytes(picture(file_format="WEBP"))

    shown = CliRunner().invoke(main, ["overlay", str(tmp_path), "--protocol", "sixel"])
    named = CliRunner().invoke(main, ["overlay", str(tmp_path / "overlay.webp")])
    missing = CliRunner().invoke(main, ["overlay", str(tmp_path.parent)])

    assert shown.stdout.startswith("\x1bPq")
    assert named.stdout == f"{tmp_path / 'overlay.webp'}\n"  # the output is no terminal
    assert (missing.exit_code, missing.stderr) == (2, f"no_overlay: There is no overlay in {tmp_path.parent}.\n")
