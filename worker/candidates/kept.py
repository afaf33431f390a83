"""Candidates that were kept before the thresholds, and the file that they are kept in.

The file is a NumPy archive, ``numpy.load("candidates.npz")``, without pickled objects.  Its arrays have a row for each
of N candidates, in the order in which they were found: crop by crop, point by point, and the three of each point.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskfleet.jobs.errors import RecordUnreadable
from maskfleet.jobs.schema.manifest import CANDIDATES_FILE
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.output.artifacts import Artifact

#: Of the file's arrays and their meaning; a file of another format is not read.
FORMAT = 1

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is measured on N candidates' pixels.  stability_score: (N,); area: (N,); bbox_xywh: (N, 4)."""

    stability_score: Floats
    area: Integers
    bbox_xywh: Integers


@dataclass(frozen=True, slots=True)
class KeptCandidates:
    """N candidates with their masks.

    crops_xywh: (C, 4), the parts that were segmented, the whole image first; those without candidates, too.
    predicted_iou: (N,).  first: as they were first measured, which is what thresholds are compared with.  last: of the
    masks themselves, of which those with many borderline pixels were decoded again.
    point_xy: (N, 2), the point of the grid.  crop: (N,), which of the crops.  candidate: (N,), which of the point's
    three.
    counts: the masks' compressed runs, one after another, for size_hw; counts_end: (N,), where those of each end.
    lowest_pred_iou_thresh, lowest_stability_score_thresh: what is not above them was not kept; 0 kept all.
    """

    size_hw: tuple[int, int]
    crops_xywh: Integers
    lowest_pred_iou_thresh: float
    lowest_stability_score_thresh: float
    predicted_iou: Floats
    first: Measured
    last: Measured
    point_xy: npt.NDArray[np.float64]
    crop: Integers
    candidate: Integers
    counts: bytes
    counts_end: Integers

    def __len__(self) -> int:
        return len(self.predicted_iou)

    def mask(self, number: int, measured: Measured, counts: str = "") -> Mask:
        """Return a candidate as a mask, as it was measured first or last."""
        x, y = self.point_xy[number].tolist()
        left, top, width, height = measured.bbox_xywh[number].tolist()
        crop_left, crop_top, crop_width, crop_height = self.crops_xywh[self.crop[number]].tolist()
        return Mask(
            counts=counts,
            size_hw=self.size_hw,
            area=int(measured.area[number]),
            bbox_xywh=(left, top, width, height),
            predicted_iou=float(self.predicted_iou[number]),
            stability_score=float(measured.stability_score[number]),
            point_coords=((x, y),),
            crop_box_xywh=(crop_left, crop_top, crop_width, crop_height),
            prompt=None,
            candidate=None,
        )

    def counts_of(self, number: int) -> str:
        """Return a mask's compressed runs."""
        start = int(self.counts_end[number - 1]) if number else 0
        return self.counts[start : int(self.counts_end[number])].decode("ascii")


def gather(
    firsts: Sequence[Mask],
    lasts: Sequence[Mask],
    columns: Sequence[int],
    crops: Sequence[int],
    crops_xywh: Sequence[tuple[int, int, int, int]],
    size_wh: tuple[int, int],
    *,
    lowest_pred_iou_thresh: float,
    lowest_stability_score_thresh: float,
) -> KeptCandidates:
    """Gather candidates.

    firsts, lasts: as first measured, and with their runs; columns: which of their point's; crops: which of crops_xywh.
    """
    runs = [mask.counts.encode("ascii") for mask in lasts]
    return KeptCandidates(
        size_hw=(size_wh[1], size_wh[0]),
        crops_xywh=np.array(crops_xywh, np.int64).reshape(-1, 4),
        lowest_pred_iou_thresh=lowest_pred_iou_thresh,
        lowest_stability_score_thresh=lowest_stability_score_thresh,
        predicted_iou=np.array([mask.predicted_iou for mask in firsts], np.float32),
        first=_measured(firsts),
        last=_measured(lasts),
        point_xy=np.array([mask.point_coords[0] for mask in firsts], np.float64).reshape(-1, 2),
        crop=np.array(crops, np.int64),
        candidate=np.array(columns, np.int64),
        counts=b"".join(runs),
        counts_end=np.cumsum([len(text) for text in runs], dtype=np.int64),
    )


def _measured(masks: Sequence[Mask]) -> Measured:
    return Measured(
        stability_score=np.array([mask.stability_score for mask in masks], np.float32),
        area=np.array([mask.area for mask in masks], np.int64),
        bbox_xywh=np.array([mask.bbox_xywh for mask in masks], np.int64).reshape(-1, 4),
    )


#: The arrays' names in the file, for those of ``first`` and ``last``.
_FIRST, _LAST = "filter_", ""


def candidates_file(kept: KeptCandidates) -> Artifact:
    """Write candidates as a NumPy archive; the same candidates make the same file, byte for byte."""
    height, width = kept.size_hw
    arrays: dict[str, Any] = {  # Any: as savez declares them
        "format": np.int64(FORMAT),
        "image_size": np.array([width, height]),
        "lowest_pred_iou_thresh": np.float64(kept.lowest_pred_iou_thresh),
        "lowest_stability_score_thresh": np.float64(kept.lowest_stability_score_thresh),
        "crop_boxes": kept.crops_xywh,
        "predicted_iou": kept.predicted_iou,
        **{_LAST + name: values for name, values in _arrays(kept.last).items()},
        **{_FIRST + name: values for name, values in _arrays(kept.first).items()},
        "point_coords": kept.point_xy,
        "crop": kept.crop,
        "candidate": kept.candidate,
        "counts": np.frombuffer(kept.counts, np.uint8),
        "counts_end": kept.counts_end,
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return Artifact(CANDIDATES_FILE, "application/zip", buffer.getvalue())


def read_candidates(data: bytes) -> KeptCandidates:
    """Read what ``candidates_file`` wrote.  Raises RecordUnreadable if it is of another format."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if int(arrays["format"]) != FORMAT:
                raise RecordUnreadable(CANDIDATES_FILE, f"its format is {int(arrays['format'])}, not {FORMAT}")
            width, height = arrays["image_size"].tolist()
            first, last = (
                Measured(arrays[part + "stability_score"], arrays[part + "area"], arrays[part + "bbox"])
                for part in (_FIRST, _LAST)
            )
            return KeptCandidates(
                size_hw=(height, width),
                crops_xywh=arrays["crop_boxes"],
                lowest_pred_iou_thresh=float(arrays["lowest_pred_iou_thresh"]),
                lowest_stability_score_thresh=float(arrays["lowest_stability_score_thresh"]),
                predicted_iou=arrays["predicted_iou"],
                first=first,
                last=last,
                point_xy=arrays["point_coords"],
                crop=arrays["crop"],
                candidate=arrays["candidate"],
                counts=arrays["counts"].tobytes(),
                counts_end=arrays["counts_end"],
            )
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RecordUnreadable(CANDIDATES_FILE, str(error)) from error


def _arrays(measured: Measured) -> dict[str, npt.NDArray[np.generic]]:
    return {
        "stability_score": measured.stability_score,
        "area": measured.area,
        "bbox": measured.bbox_xywh,
    }
