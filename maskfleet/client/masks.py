"""A job's masks: their scores at once, their pixels when they are asked for."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from maskfleet.client.packages import needed
from maskfleet.client.pictures import ARRAYS
from maskfleet.jobs.schema.inline import InlineMask, InlineMasks, Rle
from maskfleet.jobs.schema.wire import Wire

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import supervision as sv

    from maskfleet.client.job_handle import JobHandle

#: Masks that a notebook lists.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask.  Its pixels are decoded anew at each ``array()``: hundreds of them, of a large image, fill a memory.

    number: from 0, as in the result's file names.  size_hw: of the image.  prompt: the number of its prompt, None in
    mode ``everything``.  candidate: which of the three, with ``multimask``.
    """

    number: int
    size_hw: tuple[int, int]
    predicted_iou: float
    stability_score: float
    area: int
    bbox_xywh: tuple[float, float, float, float]
    prompt: int | None
    candidate: int | None
    segmentation: Rle | tuple[tuple[int, ...], ...]

    def array(self) -> npt.NDArray[np.bool_]:
        """Return its pixels, (H, W), true inside.  Raises MissingPackage without NumPy."""
        needed("numpy", ARRAYS, "A mask as an array")
        from maskfleet.client.pixels import pixels_of_polygons, pixels_of_rle

        if isinstance(self.segmentation, Rle):
            return pixels_of_rle(self.segmentation.counts, self.size_hw)
        return pixels_of_polygons(self.segmentation, self.size_hw)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:  # Any: NumPy's own protocol
        if copy is False:
            raise ValueError("A mask's pixels are decoded: they cannot be had without a copy.")
        pixels = self.array()
        return pixels if dtype is None else pixels.astype(dtype)


class Masks(Sequence[Mask]):
    """A job's masks, in the order of its result."""

    def __init__(self, job: JobHandle, masks: Sequence[Mask], size_hw: tuple[int, int]) -> None:
        self.job = job
        self.size_hw = size_hw
        self._masks = tuple(masks)

    @classmethod
    def of_inline(cls, job: JobHandle, inline: InlineMasks) -> Masks:
        """Return the masks that came in the job's own JSON."""
        return cls._of(job, inline.masks, (inline.image_height, inline.image_width))

    @classmethod
    def of_coco(cls, job: JobHandle, coco_json: bytes) -> Masks:
        """Return the masks in a ``coco.json``."""
        dataset = _Dataset.model_validate_json(coco_json)
        return cls._of(job, dataset.annotations, (dataset.images[0].height, dataset.images[0].width))

    @classmethod
    def _of(cls, job: JobHandle, found: Sequence[InlineMask], size_hw: tuple[int, int]) -> Masks:
        masks = [
            Mask(
                number=number,
                size_hw=size_hw,
                predicted_iou=one.predicted_iou,
                stability_score=one.stability_score,
                area=one.area,
                bbox_xywh=one.bbox,
                prompt=one.prompt,
                candidate=one.candidate,
                segmentation=one.segmentation,
            )
            for number, one in enumerate(found)
        ]
        return cls(job, masks, size_hw)

    def __len__(self) -> int:
        return len(self._masks)

    @overload
    def __getitem__(self, number: int) -> Mask: ...
    @overload
    def __getitem__(self, number: slice) -> Masks: ...
    def __getitem__(self, number: int | slice) -> Mask | Masks:
        if isinstance(number, slice):
            return Masks(self.job, self._masks[number], self.size_hw)
        return self._masks[number]

    def __iter__(self) -> Iterator[Mask]:
        return iter(self._masks)

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"<{len(self)} mask{'' if len(self) == 1 else 's'} on {width}×{height} pixels, of {self.job.id}>"

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """The predicted IoU of each, (N,)."""
        numpy = needed("numpy", ARRAYS, "Scores as an array")
        scores: npt.NDArray[np.float64] = numpy.array([mask.predicted_iou for mask in self], dtype=numpy.float64)
        return scores

    @property
    def boxes_xyxy(self) -> npt.NDArray[np.float64]:
        """The box around each, (N, 4), in pixels."""
        numpy = needed("numpy", ARRAYS, "Boxes as an array")
        boxes: npt.NDArray[np.float64] = numpy.array([mask.bbox_xywh for mask in self], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def array(self) -> npt.NDArray[np.bool_]:
        """Return the pixels of all masks, (N, H, W).  This takes N × H × W bytes."""
        numpy = needed("numpy", ARRAYS, "Masks as an array")
        pixels: npt.NDArray[np.bool_] = numpy.empty((len(self), *self.size_hw), dtype=bool)
        for number, mask in enumerate(self):
            pixels[number] = mask.array()
        return pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:  # Any: NumPy's own protocol
        if copy is False:
            raise ValueError("The masks' pixels are decoded: they cannot be had without a copy.")
        pixels = self.array()
        return pixels if dtype is None else pixels.astype(dtype)

    def to_supervision(self) -> sv.Detections:
        """Return supervision's Detections, with masks, scores and boxes.  Raises MissingPackage."""
        supervision = needed("supervision", "supervision", "to_supervision()")
        numpy = needed("numpy", ARRAYS, "to_supervision()")
        count = len(self)
        detections: sv.Detections = supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=self.array(),
            confidence=self.scores,
            # Segment Anything does not say what it found: there is one class, as in coco.json.
            class_id=numpy.zeros(count, dtype=int),
            data={
                "class_name": numpy.full(count, "object"),
                "stability_score": numpy.array([mask.stability_score for mask in self], dtype=float),
                "area": numpy.array([mask.area for mask in self], dtype=int),
            },
        )
        return detections

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row for each mask, without its pixels.  Raises MissingPackage."""
        pandas = needed("pandas", "pandas", "to_pandas()")
        rows = [
            {
                "number": mask.number,
                "predicted_iou": mask.predicted_iou,
                "stability_score": mask.stability_score,
                "area": mask.area,
                **dict(zip(("x", "y", "width", "height"), mask.bbox_xywh, strict=True)),
                "prompt": mask.prompt,
                "candidate": mask.candidate,
            }
            for mask in self
        ]
        columns = ["number", "predicted_iou", "stability_score", "area", "x", "y", "width", "height"]
        table = pandas.DataFrame(rows, columns=[*columns, "prompt", "candidate"])
        # Whole numbers, of which some may be missing.
        frame: pd.DataFrame = table.astype({"prompt": "Int64", "candidate": "Int64"}).set_index("number")
        return frame

    def to_geojson(self) -> dict[str, Any]:  # Any: a GeoJSON document
        """Return a GeoJSON FeatureCollection: each mask's exact outline, with its holes, in pixels of the image.

        Source: RFC 7946; y grows downwards, as in the image.  Raises MissingPackage without NumPy.
        """
        needed("numpy", ARRAYS, "to_geojson()")
        from maskfleet.client.outlines import polygons_with_holes

        features = [
            {
                "type": "Feature",
                "id": mask.number,
                "geometry": {"type": "MultiPolygon", "coordinates": polygons_with_holes(mask.array())},
                "properties": {
                    "predicted_iou": mask.predicted_iou,
                    "stability_score": mask.stability_score,
                    "area": mask.area,
                    "prompt": mask.prompt,
                    "candidate": mask.candidate,
                },
            }
            for mask in self
        ]
        return {"type": "FeatureCollection", "features": features}

    def _repr_html_(self) -> str:
        """Show the picture in a notebook, if the job painted one, and the first masks' scores."""
        rows = [
            f"<tr><td>{mask.number}</td><td>{mask.predicted_iou:.3f}</td><td>{mask.stability_score:.3f}</td>"
            f"<td>{mask.area:,}</td></tr>"
            for mask in self[:_LISTED]
        ]
        more = f"<p>and {len(self) - _LISTED} more</p>" if len(self) > _LISTED else ""
        head = "<tr><th>mask</th><th>predicted IoU</th><th>stability</th><th>pixels</th></tr>"
        picture = self.job.picture_html() or f"<p>{html.escape(repr(self))}</p>"
        return f"<div>{picture}<table>{head}{''.join(rows)}</table>{more}</div>"


class _Image(Wire):
    width: int
    height: int


class _Dataset(Wire):
    """What is read of a ``coco.json``."""

    images: tuple[_Image, ...]
    annotations: tuple[InlineMask, ...]
