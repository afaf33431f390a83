"""A raster on disk, read with rasterio (GDAL) one window at a time, and shown as a job's image would be."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from maskfleet.jobs.errors import InvalidImage, InvalidRequest
from maskfleet.raster.layout import Box
from maskfleet.worker.image.georeference import Transform, as_transform
from maskfleet.worker.image.values import Depth, Pixels, ValueRange

#: GDAL's own cache, in bytes; it is a share of the machine's memory by default.
_GDAL_CACHE = 64 * 2**20
#: Rows and columns that are read at once to find out the range of values.
_SCAN = 1024
_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


class Raster:
    """A raster that is open.

    bands: the one or three to show, numbered from 1; by default its colours, else the first three or one.
    Raises InvalidImage (``image_unsupported``, ``not_an_image``), InvalidRequest (``invalid_spec``).
    """

    def __init__(self, path: Path, bands: Sequence[int] = ()) -> None:
        warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
        self.path = path
        self._environment = rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE)
        self._environment.__enter__()
        self._lock, self._scanning = threading.Lock(), threading.Lock()
        try:
            self._file = rasterio.open(path)
        except RasterioError as error:
            raise InvalidImage("not_an_image", f"GDAL does not read {path}: {error}") from error
        colours: Sequence[ColorInterp] = self._file.colorinterp
        self._alpha = colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else None
        if bands and (len(bands) not in (1, 3) or not set(bands) <= set(range(1, self._file.count + 1))):
            raise InvalidRequest("invalid_spec", f"--bands takes one or three of the bands 1 to {self._file.count}.")
        self._bands = tuple(bands) or self._shown(colours)
        self._dtype = np.dtype(self._file.dtypes[self._bands[0] - 1])
        if self._dtype.kind not in "uif":
            raise InvalidImage("image_unsupported", f"{path} has pixels of the type {self._dtype}: not supported.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._environment.__exit__(kind, error, trace)

    @property
    def size_wh(self) -> tuple[int, int]:
        return self._file.width, self._file.height

    @property
    def bands(self) -> tuple[int, ...]:
        return self._bands

    @property
    def transform(self) -> Transform | None:
        """From pixels to the map; None for a raster without a place there."""
        transform = self._file.transform
        return None if transform.is_identity else as_transform(list(transform)[:6])

    @property
    def crs(self) -> Any:  # Any: rasterio has no types
        """rasterio's CRS, or None."""
        return self._file.crs

    @property
    def is_geographic(self) -> bool:
        return bool(self.crs and self.crs.is_geographic)

    @property
    def version(self) -> str:
        """A word that changes with the file."""
        found = self.path.stat()
        return f"{found.st_size}-{found.st_mtime_ns}"

    def png(self, box: Box) -> bytes | None:
        """Return a part as an 8-bit PNG in colours; None if there is nothing but "no data".

        May be called from any thread.  Raises InvalidImage (``image_corrupt``).
        """
        pixels = self._shown_pixels(box)
        if pixels is None:
            return None
        with MemoryFile() as memory:
            height, width = pixels.shape[1:]
            with memory.open(driver="PNG", width=width, height=height, count=3, dtype="uint8", ZLEVEL=3) as file:
                file.write(pixels)
            data: bytes = memory.read()
            return data

    def _shown(self, colours: Sequence[ColorInterp]) -> tuple[int, ...]:
        if all(colour in colours for colour in _RGB):
            return tuple(colours.index(colour) + 1 for colour in _RGB)
        others = [band for band in range(1, len(colours) + 1) if band != self._alpha]
        return tuple(others[: 3 if len(others) >= 3 else 1])

    def _shown_pixels(self, box: Box) -> Pixels | None:
        """Return (3, h, w): as the worker shows a file of its own, but with one range of values for all windows."""
        values = self._values
        samples, valid = self._read(box)
        if not valid.any():
            return None
        if self._palette is not None:
            shown = np.moveaxis(self._palette[samples[0]], -1, 0)
        elif values is None:
            shown = samples.astype(np.uint8, copy=False)
        else:
            shown = self._depth.eight_bits(samples, values)
        if self._alpha is not None:
            shown = (255 - (255 - shown.astype(np.uint16)) * valid // 255).astype(np.uint8)
        else:
            shown = np.where(valid, shown, 0).astype(np.uint8)
        return np.broadcast_to(shown, (3, *shown.shape[1:])) if len(shown) == 1 else shown[:3]

    def _read(self, box: Box) -> tuple[npt.NDArray[Any], Pixels]:
        """Return the bands' samples (bands, h, w), and how much each pixel counts, 0 to 255."""
        window = Window(box.left, box.top, box.right - box.left, box.bottom - box.top)
        with self._lock, rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE):
            try:
                samples = self._file.read(self._bands, window=window)
                if self._alpha is not None:
                    alpha = self._file.read(self._alpha, window=window)
                    return samples, alpha if alpha.dtype == np.uint8 else np.where(alpha > 0, 255, 0).astype(np.uint8)
                return samples, self._file.dataset_mask(window=window)
            except RasterioError as error:
                raise InvalidImage("image_corrupt", f"GDAL cannot read a part of {self.path}: {error}") from error

    @cached_property
    def _palette(self) -> Pixels | None:
        if self._file.colorinterp[self._bands[0] - 1] is not ColorInterp.palette or self._dtype != np.uint8:
            return None
        colours = self._file.colormap(self._bands[0])
        return np.array([colours.get(index, (0, 0, 0, 255))[:3] for index in range(256)], np.uint8)

    @property
    def _depth(self) -> Depth:
        return Depth(8 * self._dtype.itemsize, self._dtype.kind, self._file.nodata)

    @property
    def _values(self) -> ValueRange | None:
        """The values shown as black and as white; None for 8 bits, which are shown as they are."""
        if self._dtype == np.uint8:
            return None
        with self._scanning:
            return self._range

    @cached_property
    def _range(self) -> ValueRange:
        """Read the whole raster once."""
        return self._depth.range_between(self._depth.ends(samples) for samples in self._parts())

    def _parts(self) -> Iterator[npt.NDArray[Any]]:
        width, height = self.size_wh
        for top in range(0, height, _SCAN):
            for left in range(0, width, _SCAN):
                samples, valid = self._read(Box(left, top, min(left + _SCAN, width), min(top + _SCAN, height)))
                yield samples[:, valid > 0]
