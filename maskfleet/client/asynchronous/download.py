"""Download the files of a manifest, each checked before it gets its name.

For asyncio.  Made from ``maskfleet.client.download`` by ``make async-client``; change that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from maskfleet.client.asynchronous.transport import AsyncTransport
from maskfleet.client.files import MANIFEST, Arriving, Expected, write_manifest
from maskfleet.jobs.schema.manifest import Manifest


async def download(
    transport: AsyncTransport,
    manifest: Manifest,
    folder: Path,
    *,
    on_file: Callable[[str, int, int], object] | None = None,
) -> None:
    """Write a result's files into a folder, and then ``manifest.json``, without its short-lived links.

    Raises DamagedFile if the size or sha256 differs; that file does not appear under its name.
    """
    total = len(manifest.files)
    for done, file in enumerate(manifest.files):
        if on_file is not None:
            on_file(file.name, done, total)
        await read_file(transport, Expected.of(file), folder)
    if on_file is not None:
        on_file(MANIFEST, total, total)
    write_manifest(manifest, folder)


async def read_file(transport: AsyncTransport, file: Expected, folder: Path | None = None) -> bytes:
    """Return one file's bytes, or write them into a folder.  Raises DamagedFile."""
    arriving = Arriving(file, folder)
    try:
        async with transport.chunks(file.url, file.name) as chunks:
            async for chunk in chunks:
                arriving.write(chunk)
        return arriving.finish()
    finally:
        arriving.discard()
