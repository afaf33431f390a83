"""Candidates kept while a job is segmented: encoded at once, since there are thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.manifest import CANDIDATES_FILE
from maskfleet.jobs.schema.spec import EverythingParams
from maskfleet.worker.candidates.kept import KeptCandidates, gather
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.pending import PendingMask, PendingMasks
from maskfleet.worker.sam.crops import Crop

#: What the masks of one job's candidates may take.  They are in memory until they are uploaded, as an archive's are.
MAX_CANDIDATES_BYTES = 256 * 2**20


class Keeping:
    """The candidates found so far.

    pending: their masks, encoded, so that those with many borderline pixels can be replaced.
    """

    def __init__(self, max_bytes: int = MAX_CANDIDATES_BYTES) -> None:
        self.pending = PendingMasks(logits_window_bytes=0)
        self._firsts: list[Mask] = []
        self._crops: list[int] = []
        self._crop = -1
        self._max_bytes = max_bytes
        self._bytes = 0

    def begin_crop(self) -> int:
        """Say that what is added from now on is of the next crop; return where that begins in pending."""
        self._crop += 1
        return len(self.pending)

    def add(self, mask: PendingMask) -> None:
        """Keep a candidate, without its logits.  Raises InvalidRequest (``candidates_too_large``)."""
        first, view = replace(mask.mask, logits=None), replace(mask.view, keep_logits=False)
        self._firsts.append(first)
        self._crops.append(self._crop)
        self.pending.add(replace(mask, mask=first, view=view))
        self._bytes += len(self.pending[-1].mask.counts)
        if self._bytes > self._max_bytes:
            raise InvalidRequest(
                "candidates_too_large",
                f"{CANDIDATES_FILE} would be larger than {self._max_bytes // 2**20} MiB. Raise keep_pred_iou_thresh or "
                "keep_stability_score_thresh, or use fewer points.",
            )

    def gathered(self, crops: Sequence[Crop], size_wh: tuple[int, int], params: EverythingParams) -> KeptCandidates:
        """Return all of them.  crops: all that were segmented."""
        return gather(
            self._firsts,
            self.pending.written(),
            [mask.column for mask in self.pending],
            self._crops,
            [(crop.box_xyxy[0], crop.box_xyxy[1], *crop.size_wh) for crop in crops],
            size_wh,
            lowest_pred_iou_thresh=params.lowest_pred_iou_thresh,
            lowest_stability_score_thresh=params.lowest_stability_score_thresh,
        )
