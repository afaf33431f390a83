"""Masks as outlines, exactly along the edges of their pixels: GeoJSON, SVG, YOLO's segments and COCO's polygons."""

from __future__ import annotations

import json
from collections.abc import Iterable

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.spec import Output
from maskfleet.worker.image.georeference import Georeference
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.polygons import MAX_RUNS, Piece, Polygon, mask_pieces, mask_polygons
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.output.geometries import PIXELS, Place, crs_member, geometry_of
from maskfleet.worker.output.overlay import colour_of, opacity_of
from maskfleet.worker.segmentation import Segmentation

#: A file is in memory until it is uploaded.
MAX_OUTLINE_BYTES = 256 * 2**20


def geojson_file(segmentation: Segmentation, file_name: str, georeference: Georeference | None = None) -> Artifact:
    """Return a feature for each mask: in map coordinates with a georeference that has a transform, else in pixels.

    Raises InvalidRequest, as the others: ``outlines_too_large``.
    Source: RFC 7946, "The GeoJSON Format", 3 and 6.1 (the member ``image``); "The GeoJSON Format Specification" (2008),
    3 (the member ``crs``), which RFC 7946 allows where both sides know of it (4), and GDAL and QGIS do.
    """
    width, height = segmentation.size_wh
    image: dict[str, object] = {"file_name": file_name, "width": width, "height": height}
    place, crs = PIXELS, ""
    if georeference is not None and georeference.transform is not None:
        place, crs = Place.by(georeference.transform), f'"crs": {json.dumps(crs_member(georeference.epsg))},\n'
        image["transform"] = georeference.transform
    features = (
        ("" if number == 1 else ",\n") + _feature(number, mask, place)
        for number, mask in enumerate(segmentation.masks, 1)
    )
    head = f'{{"type": "FeatureCollection",\n{crs}"image": {json.dumps(image)},\n"features": [\n'
    data = _within_limit([head], features, ["\n]}\n"], output=Output.GEOJSON)
    return Artifact("outlines.geojson", "application/geo+json", data)


def svg_file(segmentation: Segmentation) -> Artifact:
    """Return a drawing of the image's size with a path for each mask, in the overlay's colours, larger ones first."""
    width, height = segmentation.size_wh
    paths = (
        _path(number, mask) for number, mask in sorted(enumerate(segmentation.masks, 1), key=lambda pair: -pair[1].area)
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<g fill-rule="evenodd" stroke-linejoin="round">\n'
    )
    data = _within_limit([head], paths, ["</g>\n</svg>\n"], output=Output.SVG)
    return Artifact("outlines.svg", "image/svg+xml", data)


def yolo_file(segmentation: Segmentation) -> Artifact:
    """Return a line for each mask that has pixels: class 0, and its polygon's x and y as shares of the image's size.

    Source: Ultralytics, "Instance Segmentation Datasets Overview", Ultralytics YOLO format.
    """
    lines = (
        _line(number, mask, segmentation.size_wh) for number, mask in enumerate(segmentation.masks, 1) if mask.area
    )
    return Artifact("yolo.txt", "text/plain", _within_limit(lines, output=Output.YOLO))


def coco_polygons_file(dataset: Iterable[str]) -> Artifact:
    """Return a COCO dataset whose masks are ``polygons_of`` them, from the parts of its text."""
    return Artifact("coco_polygons.json", "application/json", _within_limit(dataset, output=Output.COCO_POLYGONS))


def polygons_of(number: int, mask: Mask) -> tuple[Polygon, ...]:
    """Return a mask's polygons, with slits to its holes.  Raises InvalidRequest: ``outlines_too_large``."""
    polygons = mask_polygons(mask.counts, mask.size_hw, max_corners=4 * MAX_RUNS)
    if polygons is None:
        raise _ragged(number)
    return polygons


def _within_limit(*parts: Iterable[str], output: Output) -> bytes:
    data = bytearray()
    for part in parts:
        for text in part:
            data += text.encode()
            if len(data) > MAX_OUTLINE_BYTES:
                raise _too_large(f"The masks take more than {MAX_OUTLINE_BYTES // 2**20} MiB as {output}.")
    return bytes(data)


def _too_large(what: str) -> InvalidRequest:
    return InvalidRequest("outlines_too_large", f"{what} Use coco or png instead, or raise the thresholds.")


def _ragged(number: int) -> InvalidRequest:
    return _too_large(f"The outline of mask {number} is too ragged: it has more than {MAX_RUNS:,} runs of pixels.")


def _pieces(number: int, mask: Mask) -> tuple[Piece, ...]:
    if (pieces := mask_pieces(mask.counts, mask.size_hw)) is None:
        raise _ragged(number)
    return pieces


def _feature(number: int, mask: Mask, place: Place) -> str:
    properties = {
        "area": mask.area,
        "bbox": mask.bbox_xywh,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "prompt": mask.prompt,
        "candidate": mask.candidate,
    }
    return (
        f'{{"type": "Feature", "id": {number}, "properties": {json.dumps(properties)}, '
        f'"geometry": {json.dumps(geometry_of(_pieces(number, mask), place), separators=(",", ":"))}}}'
    )


def _path(number: int, mask: Mask) -> str:
    colour = "#{:02x}{:02x}{:02x}".format(*colour_of(number - 1 if mask.prompt is None else mask.prompt))
    rings = (ring for piece in _pieces(number, mask) for ring in (piece.outline, *piece.holes))
    return (
        f'<path id="mask-{number}" fill="{colour}" fill-opacity="{opacity_of(mask):.3f}" stroke="{colour}" '
        f'd="{"".join(map(_drawn, rings))}"><title>Mask {number}, score {mask.predicted_iou:.3f}</title></path>\n'
    )


def _drawn(ring: Polygon) -> str:
    """Write a ring as steps across and down, whose signs part them."""
    steps = [f"M{ring[0]} {ring[1]}"]
    for place in range(2, len(ring), 2):
        across, down = ring[place] - ring[place - 2], ring[place + 1] - ring[place - 1]
        steps.append(f"h{across}" if across else f"v{down}")
    return "".join([*steps, "z"])


def _line(number: int, mask: Mask, size_wh: tuple[int, int]) -> str:
    line, (width, height) = joined(polygons_of(number, mask)), size_wh
    corners = zip(line[0::2], line[1::2], strict=True)
    return "0 " + " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in corners) + "\n"


def joined(polygons: tuple[Polygon, ...]) -> Polygon:
    """Join polygons to one, by lines that run from each one's first corner to the next one's and back."""
    firsts = [polygon[:2] for polygon in polygons]
    there = [value for polygon, first in zip(polygons, firsts, strict=True) for value in (*polygon, *first)]
    back = [value for first in firsts[-2:0:-1] for value in first]
    return tuple(there + back) if len(polygons) > 1 else polygons[0]
