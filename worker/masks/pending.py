"""Masks that are measured and not written yet: most are suppressed, and those that stay are traced in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from maskfleet.worker.masks.choice import View
from maskfleet.worker.masks.mask import Mask
from maskfleet.worker.masks.measure import NO_LOGITS_WINDOW, LogitsWindow, count_near, trace
from maskfleet.worker.masks.resampling import BilinearMap
from maskfleet.worker.masks.rle import encode_rle
from maskfleet.worker.sam.prompts import PromptBatch

#: Logits that unwritten masks may hold.  Mostly some 10 kB each; a mask of the whole image holds 256 kB.
LOGITS_WINDOW_BYTES = 64 * 2**20
#: A pixel is borderline if its logit is this near the threshold.  Of 600 masks at 18 and 100 MP, none differed from the
#: library's in more pixels than it has this near; at 1e-4 two did.
_BORDERLINE = 3e-4


@dataclass(frozen=True, slots=True)
class PendingMask:
    """A mask that is measured but not encoded yet: its counts are empty.

    batch, row, column: its batch, its prompt in the batch, and which of the prompt's candidates it is.
    logits_window: what it is traced from.  borderline: its borderline pixels, counted when the outline is dropped.
    """

    mask: Mask
    view: View
    batch: PromptBatch
    row: int
    column: int
    logits_window: LogitsWindow
    bilinear_map: BilinearMap
    borderline: int = 0

    @property
    def prompt(self) -> int:
        """The index of the prompt in the job's list, or of the point in the grid."""
        return self.batch.indices[self.row]

    def prompt_alone(self) -> PromptBatch:
        """Its prompt by itself, without padding."""
        return self.batch.alone(self.row)

    def written(self) -> Mask:
        """Trace the mask and return it with its runs encoded."""
        if self.mask.counts:
            return self.mask
        size_hw, (left, top, _, _) = self.mask.size_hw, self.view.crop.box_xyxy
        changes = trace(self.logits_window, self.bilinear_map, self.view.cut.threshold, size_hw[0], (left, top))
        return replace(self.mask, counts=encode_rle(changes, size_hw))

    def without_logits_window(self) -> PendingMask:
        """Return the same mask encoded: a few bytes per run instead of its logits."""
        return replace(self, mask=self.written(), borderline=self.borderline_pixels(), logits_window=NO_LOGITS_WINDOW)

    def borderline_pixels(self) -> int:
        """Count the pixels so near the threshold that the library may have them on the other side."""
        if self.mask.counts:
            return self.borderline
        return count_near(self.logits_window, self.bilinear_map, self.view.cut.threshold, _BORDERLINE)


class PendingMasks:
    """The masks found so far: not encoded, since most will be suppressed, except where memory is short.

    logits_window_bytes: the logits that unencoded ones may hold.
    """

    def __init__(self, logits_window_bytes: int = LOGITS_WINDOW_BYTES) -> None:
        self._pending: list[PendingMask] = []
        self._logits_window_bytes = logits_window_bytes
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[PendingMask]:
        return iter(self._pending)

    def __getitem__(self, place: int) -> PendingMask:
        return self._pending[place]

    def add(self, mask: PendingMask) -> None:
        mask = self._lightened(mask)
        self._pending.append(mask)
        self.held_bytes += mask.logits_window.transposed.nbytes

    def put(self, place: int, mask: PendingMask) -> None:
        """Replace a mask by another."""
        self.held_bytes -= self._pending[place].logits_window.transposed.nbytes
        self._pending[place] = mask = self._lightened(mask)
        self.held_bytes += mask.logits_window.transposed.nbytes

    def keep(self, choose: Callable[[Sequence[Mask]], Sequence[int]], first: int = 0) -> None:
        """Of the masks from index ``first`` on, keep the chosen ones, in the order given."""
        rest = self._pending[first:]
        self._pending[first:] = [rest[index] for index in choose([one.mask for one in rest])]
        self.held_bytes = sum(one.logits_window.transposed.nbytes for one in self._pending)

    def written(self) -> tuple[Mask, ...]:
        return tuple(one.written() for one in self._pending)

    def _lightened(self, mask: PendingMask) -> PendingMask:
        """Encode a mask and drop its outline if there is no room for it."""
        if self.held_bytes + mask.logits_window.transposed.nbytes > self._logits_window_bytes:
            return mask.without_logits_window()
        return mask
