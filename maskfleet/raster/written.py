"""The files made of all objects: outlines as GeoJSON, one object at a time, and a label map, one window at a time."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from maskfleet.raster.layout import Box, Layout
from maskfleet.raster.seams import Object, Seams
from maskfleet.raster.source import Raster
from maskfleet.raster.spans import Spans
from maskfleet.worker.masks.polygons import MAX_RUNS
from maskfleet.worker.output.geometries import PIXELS, Place, crs_member, geometry_of

OUTLINES, LABELS = "outlines.geojson", "label_map.tif"
#: The label map's windows, of whole blocks of its file.
_WINDOW, _BLOCK = 1024, 256
_MAX_SHORT = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.  joined: objects of several tiles' masks.  cut_off: those that end where a tile was cut."""

    objects: int
    joined: int
    cut_off: int


class ObjectFiles:
    """Writes the files of a raster's objects, which are numbered from 1."""

    def __init__(self, out: Path, raster: Raster, layout: Layout, seams: Seams) -> None:
        self._out = out
        self._raster = raster
        self._layout = layout
        self._seams = seams
        #: Of each tile's masks the object's number, or 0, and of each object its area.
        self._numbers: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self._areas = array("q", [0])
        self._whole = Box(0, 0, *raster.size_wh)
        self._place = PIXELS if raster.transform is None else Place.by(raster.transform)

    def write(self) -> Written:
        """Write both files; each replaces an earlier one when it is complete."""
        joined = cut_off = 0
        part = self._out / f"{OUTLINES}.part"
        with part.open("w", encoding="utf-8") as file:
            file.write(self._head())
            for number, thing in enumerate(self._seams.objects(), 1):
                file.write(",\n" if number > 1 else "")
                self._write_feature(file, number, thing)
                joined += len(thing.parts) > 1
                cut_off += thing.is_cut_off
            file.write("\n]}\n")
        part.replace(self._out / OUTLINES)
        self._write_labels()
        return Written(len(self._areas) - 1, joined, cut_off)

    def _head(self) -> str:
        width, height = self._raster.size_wh
        image: dict[str, object] = {"file_name": self._raster.path.name, "width": width, "height": height}
        crs = ""
        if self._raster.transform is not None:
            image["transform"] = self._raster.transform
            member = crs_member(self._epsg)
            if member is None and self._raster.crs:  # GDAL reads it, and nothing else would
                member = {"type": "name", "properties": {"name": self._raster.crs.to_wkt()}}
            crs = f'"crs": {json.dumps(member)},\n'
        return f'{{"type": "FeatureCollection",\n{crs}"image": {json.dumps(image)},\n"features": [\n'

    @property
    def _epsg(self) -> int | None:
        epsg: int | None = self._raster.crs.to_epsg() if self._raster.crs else None
        return epsg

    def _write_feature(self, file: TextIO, number: int, thing: Object) -> None:
        file.write(f'{{"type": "Feature", "id": {number}, "geometry": ')
        area = self._write_geometry(file, thing)
        self._areas.append(area)
        scores, stabilities, weights = array("d"), array("d"), array("d")
        for tile, at in thing.parts:
            mask = self._seams.read(tile)[at]
            scores.append(mask.score)
            stabilities.append(mask.stability)
            weights.append(mask.spans.area)
            numbers = self._numbers[tile]
            numbers.extend([0] * (at + 1 - len(numbers)))
            numbers[at] = number
        properties: dict[str, object] = {
            "area": area,
            "predicted_iou": float(np.average(scores, weights=weights)),
            "stability_score": float(np.average(stabilities, weights=weights)),
            "tiles": len({tile for tile, _ in thing.parts}),
            "cut_off": thing.is_cut_off,
        }
        if self._raster.transform is not None and not self._raster.is_geographic:
            a, b, _, d, e, _ = self._raster.transform
            properties["map_area"] = area * abs(a * e - b * d)
        file.write(f', "properties": {json.dumps(properties)}}}')

    def _write_geometry(self, file: TextIO, thing: Object) -> int:
        """Write an object's outlines, and return its area.

        One that is too large to be followed as a whole, such as the ground between everything else, is followed part by
        part, each without what earlier ones had.
        """
        union, spans = None, 0
        for tile, at in thing.parts:
            mask = self._seams.read(tile)[at].spans
            union = mask if union is None else union | mask
            spans += len(mask.starts)
            if len(thing.parts) > 1 and spans > MAX_RUNS:
                return self._write_part_by_part(file, thing)
        assert union is not None  # noqa: S101  an object has a part
        file.write(_text(geometry_of(union.pieces() or (), self._place)))
        return union.area

    def _write_part_by_part(self, file: TextIO, thing: Object) -> int:
        file.write('{"type":"MultiPolygon","coordinates":[')
        area, joint = 0, ""
        parts: dict[int, list[int]] = {}
        for tile, at in thing.parts:
            mask = self._seams.read(tile)[at]
            rest = mask.spans
            for other in self._layout.touching(mask.box):
                for earlier in parts.get(other, ()):
                    rest -= self._seams.read(other)[earlier].spans
            parts.setdefault(tile, []).append(at)
            area += rest.area
            for piece in rest.pieces() or ():
                geometry = geometry_of((piece,), self._place)
                file.write(f"{joint}{_text(geometry and geometry['coordinates'])}")
                joint = ","
        file.write("]}")
        return area

    def _write_labels(self) -> None:
        """Write each pixel's object; of several the smallest, of those of the same area the last."""
        width, height = self._raster.size_wh
        kind = np.uint16 if len(self._areas) - 1 <= _MAX_SHORT else np.uint32
        part = self._out / f"{LABELS}.part"
        profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": np.dtype(kind).name}
        profile |= {"compress": "deflate", "nodata": 0, "BIGTIFF": "IF_SAFER"}
        if max(width, height) > _BLOCK:
            profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
        if self._raster.transform is not None:
            profile |= {"crs": self._raster.crs, "transform": Affine(*self._raster.transform)}
        with rasterio.open(part, "w", **profile) as file:
            for window in self._windows():
                labels = self._labels(window).astype(kind)
                file.write(labels, 1, window=Window(window.left, window.top, *labels.shape[::-1]))
        part.replace(self._out / LABELS)

    def _windows(self) -> Iterator[Box]:
        for top in range(0, self._whole.bottom, _WINDOW):
            for left in range(0, self._whole.right, _WINDOW):
                yield Box(left, top, left + _WINDOW, top + _WINDOW) & self._whole

    def _labels(self, window: Box) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
        shown: list[tuple[int, int, Box, Spans]] = []
        for tile in self._layout.touching(window):
            numbers = self._numbers.get(tile)
            if numbers is None:
                continue
            for number, mask in zip(numbers, self._seams.read(tile), strict=False):
                if number and mask.box & window:
                    shown.append((-self._areas[number], number, mask.box & window, mask.spans))
        labels = np.zeros((window.bottom - window.top, window.right - window.left), np.uint32)
        for _, number, box, spans in sorted(shown, key=lambda one: one[:2]):
            rows = slice(box.top - window.top, box.bottom - window.top)
            columns = slice(box.left - window.left, box.right - window.left)
            spans.paint(box, number, labels[rows, columns])
        return labels


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
