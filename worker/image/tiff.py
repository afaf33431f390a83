"""TIFF by its own tags, read with tifffile and imagecodecs, one strip or tile at a time.

Sources: TIFF 6.0 and its technical notes; the BigTIFF design; Adobe's DNG 1.7, for NewSubfileType and SubIFDs; GDAL's
GTiff driver, for bands without a colour, empty blocks and GDAL_NODATA.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from tifffile import TiffFile, TiffPage, TiffPages

from maskfleet.jobs.errors import InvalidImage
from maskfleet.jobs.image_types import check_size
from maskfleet.worker.image.colours import Colours, row_ranges
from maskfleet.worker.image.file_checks import DECODER_ERRORS, refused_when_broken
from maskfleet.worker.image.geo_tags import GEO_TAGS, georeference_of
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.image.picture import Band, Decoded, Turn
from maskfleet.worker.image.tiff_tags import (
    check_supported,
    colours_of,
    is_subsampled,
    no_data_of,
    orientation_of,
    whole_number,
)
from maskfleet.worker.image.values import Samples

#: Per pixel: what colours need for each band, at most.
_BYTES_PER_PIXEL = 16
#: A strip or tile is in memory packed, unpacked, and in the machine's byte order.
_COPIES = 3
#: More reduced images than this, before the picture itself, no camera writes.
_MAX_PAGES = 16
#: Compressions after which libtiff undoes a predictor; after others, writers leave the tag in without using it.
_WITH_PREDICTOR = (5, 8, 32946, 34925, 34926, 50000)
#: NewSubfileType: a smaller version of another image in the file.
_REDUCED = 1

#: What must be one number each before anything is computed from it.
_WHOLE_NUMBERS = (
    "imagewidth", "imagelength", "imagedepth", "tilewidth", "tilelength", "tiledepth", "rowsperstrip",
    "samplesperpixel", "compression", "predictor", "planarconfig", "fillorder", "photometric",
)  # fmt: skip
#: A part of the picture: top, left and (h, w, samples).
Block = tuple[int, int, Samples]


@dataclass(frozen=True, slots=True)
class TiffPicture:
    """A TIFF whose tags are read.  page: the directory of the picture that is decoded."""

    page: TiffPage
    data: bytes
    orientation: int
    size_wh: tuple[int, int]
    format: str = "TIFF"

    @property
    def stored_pixels(self) -> int:
        return self.size_wh[0] * self.size_wh[1]

    @property
    def decoding_bytes(self) -> int:
        rows, columns = self.block_size
        pixels = min(rows, self.size_wh[1]) * min(columns, self.size_wh[0])
        samples = self.page.samplesperpixel  # of all planes, which lie in memory together
        block = pixels * samples * (self.page.dtype.itemsize if self.page.dtype else 0)
        return max(_BYTES_PER_PIXEL * self.stored_pixels, _COPIES * block)

    def decoded(self) -> Decoded:
        """Decode the picture block by block; twice if its values must be known before the first is shown."""
        with refused_when_broken(self.format, self.data):
            colours = colours_of(self.page)
            kept = list(self._blocks(colours.needed)) if self._grid == (1, 1) else None
            colours = colours.with_ranges(lambda: _parts(kept or self._blocks(colours.needed)))
            turn = Turn(self.orientation, self.size_wh)
            bands = self._bands(kept or self._blocks(colours.needed), colours, turn)
        return Decoded(turn.upright_wh, colours.values, bands, _georeference(self.page, turn))

    def _bands(self, blocks: Iterable[Block], colours: Colours, turn: Turn) -> Iterator[Band]:
        with refused_when_broken(self.format, self.data):
            for top, left, samples in blocks:
                yield turn.band(top, left, colours.rgb(samples))

    def _blocks(self, needed: tuple[int, ...]) -> Iterator[Block]:
        """Yield what covers the picture, cropped to it, and of each pixel the samples that are needed."""
        width, height = self.size_wh
        down, across = self._grid
        rows, columns = self.block_size
        for number in range(down * across):
            top, left = number // across * rows, number % across * columns
            if self._planes == 1:
                block = _chosen(self._segment(number), needed)
            else:
                block = np.concatenate([self._segment(plane * down * across + number) for plane in needed], axis=-1)
            yield top, left, block[: height - top, : width - left]

    def _segment(self, number: int) -> Samples:
        """Decode a strip or tile; return (rows, columns, samples)."""
        page = self.page
        if number >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise _corrupt("it lists too few strips or tiles")
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        if count == 0:  # GDAL does not write what is empty
            return self._empty_segment(number)
        if page.compression == tifffile.COMPRESSION.NONE:
            count = min(count, self._stored_bytes(number))  # some writers count the last strip as a whole one
        if offset + count > len(self.data):
            raise InvalidImage("image_truncated", "The TIFF file is truncated. Upload it again.")
        packed = self.data[offset : offset + count]
        if is_subsampled(page):
            return self._from_subsampled(packed, number)
        samples = self._unpacked(packed, number)
        expected = self.page.dtype
        if expected is None or samples.ndim != 4:
            raise _corrupt("its tags and its pixels do not agree")
        # Bits come as booleans or as bytes, by their compression.
        if samples.dtype != expected and not (samples.dtype == np.uint8 and expected == np.bool_):
            raise _corrupt("its tags and its pixels do not agree")
        decoded: Samples = samples[0]
        return decoded

    def _unpacked(self, packed: bytes, number: int) -> Samples:
        """Undo compression and predictor; return (1, rows, columns, samples)."""
        tables: dict[str, Any] = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader}
        samples: Samples | None
        try:
            samples, _, _ = self.page.decode(packed, number, **tables)
        except DECODER_ERRORS:
            if self.page.is_tiled or self._rows_of(number) == self.block_size[0]:
                raise
            # Some writers fill the last strip up to the rows of the others: then it is unpacked like the first.
            samples, _, _ = self.page.decode(packed, 0, **tables)
        if samples is None:
            raise _corrupt("a strip or tile is empty")
        return samples[:, : self._rows_of(number)]

    def _empty_segment(self, number: int) -> Samples:
        rows = self.block_size[0] if self.page.is_tiled else self._rows_of(number)
        samples = 1 if self._planes > 1 else self.page.samplesperpixel
        value = self.page.nodata if no_data_of(self.page) is not None else 0
        return np.full((rows, self.block_size[1], samples), value, self.page.dtype)

    def _from_subsampled(self, packed: bytes, number: int) -> Samples:
        """Unpack YCbCr whose chroma is stored once for several pixels.  Source: TIFF 6.0, section 21."""
        if self.page.compression != tifffile.COMPRESSION.NONE:
            packed = tifffile.TIFF.DECOMPRESSORS[self.page.compression](packed)
        across, down = self.page.subsampling or (2, 2)
        rows, columns = self._rows_of(number), self.block_size[1]
        units_down, units_across = -(-rows // down), -(-columns // across)
        units = np.frombuffer(packed, np.uint8, units_down * units_across * (across * down + 2))
        units = units.reshape(units_down, units_across, across * down + 2)
        blocks = units[..., :-2].reshape(units_down, units_across, down, across).swapaxes(1, 2)
        luma = blocks.reshape(units_down * down, units_across * across)
        chroma = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        return np.concatenate([luma[..., None], chroma], axis=-1)[:rows, :columns]

    def _rows_of(self, number: int) -> int:
        rows = self.block_size[0]
        if self.page.is_tiled:
            return rows
        return min(rows, self.size_wh[1] - number % self._grid[0] * rows)

    def _stored_bytes(self, number: int) -> int:
        """Return the most bytes that a block takes that is not compressed."""
        samples = 1 if self._planes > 1 else self.page.samplesperpixel
        bits = 8 * self.page.dtype.itemsize if self.page.dtype else 0
        return self._rows_of(number) * (-(-self.block_size[1] * samples * bits // 8) + 1)

    @property
    def _planes(self) -> int:
        return self.page.samplesperpixel if self.page.planarconfig == 2 else 1

    @property
    def block_size(self) -> tuple[int, int]:
        """The rows and columns of a strip or tile."""
        if self.page.is_tiled:
            return self.page.tilelength, self.page.tilewidth
        return self.page.rowsperstrip, self.page.imagewidth

    @property
    def _grid(self) -> tuple[int, int]:
        """How many blocks lie one below the other, and side by side."""
        rows, columns = self.block_size
        return -(-self.size_wh[1] // rows), -(-self.size_wh[0] // columns)


@contextmanager
def open_tiff(data: bytes, max_pixels: int) -> Iterator[TiffPicture]:
    """Read a TIFF's tags and check them.

    Raises InvalidImage: ``image_too_large``, ``image_truncated``, ``image_corrupt``, ``image_unsupported``.
    """
    with refused_when_broken("TIFF", data):
        # Flags of formats for which tifffile would read every page, or patch it.
        tiff = TiffFile(_stream(data), is_lsm=False, is_scanimage=False, is_ndpi=False, _multifile=False)
    with tiff:
        with refused_when_broken("TIFF", data):
            page = _picture(tiff)
            for name in _WHOLE_NUMBERS:
                whole_number(getattr(page, name))
            size_wh = (page.imagewidth, page.imagelength)
            check_size(size_wh, max_pixels)
            if 0 in size_wh:
                raise _corrupt("it says that it has no pixels")
            if page.compression not in _WITH_PREDICTOR:
                page.predictor = tifffile.PREDICTOR.NONE
            check_supported(page, data)
            picture = TiffPicture(page, data, orientation_of(page, tiff.pages.first), size_wh)
            if 0 in picture.block_size:
                raise _corrupt("it says that its strips or tiles have no pixels")
        yield picture


def _georeference(page: TiffPage, turn: Turn) -> Georeference | None:
    try:
        return georeference_of({tag: page.tags.valueof(tag) for tag in GEO_TAGS if tag in page.tags}, turn)
    except DECODER_ERRORS:
        return Georeference(note="The file's place on the map was left out: its tags are damaged.")


def _stream(data: bytes) -> io.BytesIO:
    stream = io.BytesIO(data)
    if data[:4] in (b"II\0*", b"MM*\0"):  # its 42 is in the wrong byte order
        stream.seek(2)
        stream.write(data[3:1:-1])
        stream.seek(0)
    return stream


def _picture(tiff: TiffFile) -> TiffPage:
    """Return the first image that is no reduced version of another.

    Cameras' files, and DNG, begin with a thumbnail, and have the picture below it.
    """
    return next((page for page in _directories(tiff) if not page.subfiletype & _REDUCED), tiff.pages.first)


def _directories(tiff: TiffFile) -> Iterator[TiffPage]:
    """Yield the first directory, those below it, and the later ones: not more than a camera writes."""
    first = tiff.pages.first
    yield first
    chains = [(tiff.pages, range(1, _MAX_PAGES))]
    if first.subifds:
        chains.insert(0, (TiffPages(first, index=first.index), range(_MAX_PAGES)))
    for pages, numbers in chains:
        for number in numbers:
            try:
                page = pages[number]
            except IndexError:
                break
            if isinstance(page, TiffPage):  # else a frame of another page, which tifffile was not told to make
                yield page


def _parts(blocks: Iterable[Block]) -> Iterator[Samples]:
    for _, _, samples in blocks:
        for rows in row_ranges(*samples.shape[:2]):
            yield samples[rows]


def _chosen(samples: Samples, needed: tuple[int, ...]) -> Samples:
    if needed == tuple(range(needed[0], needed[-1] + 1)):
        return samples[..., needed[0] : needed[-1] + 1]
    return samples[..., needed]


def _corrupt(why: str) -> InvalidImage:
    return InvalidImage("image_corrupt", f"The TIFF file is damaged: {why}.")
