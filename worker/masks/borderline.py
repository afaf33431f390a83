"""Masks with many borderline pixels: measured again from the logits of the library's own decoder, to match it exactly.

The fast decoder adds in a different order than the library's, so near the threshold a logit is off by some 1e-5.  On
which side of the threshold such a pixel falls is then chance, and the longer a mask's outline on the original, the more
of them it has.  Only masks that were kept are examined, and few have more than ``MAX_BORDERLINE_PIXELS``, so the
library's slow decoder gets a few prompts in a thousand (``maskfleet.worker.sam.reference``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from maskfleet.worker.masks.choice import Chosen
from maskfleet.worker.masks.from_candidates import measure_masks
from maskfleet.worker.masks.pending import PendingMasks
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch

#: How many borderline pixels a mask may have.
MAX_BORDERLINE_PIXELS = 5


def borderline_prompts(pending: PendingMasks, first: int, most: int) -> dict[int, list[int]]:
    """Find the masks from index ``first`` on that have more than ``most`` borderline pixels.

    Returns their indices, grouped by the index of their prompt.
    """
    places_of: dict[int, list[int]] = {}
    for place in range(first, len(pending)):
        if pending[place].borderline_pixels() > most:
            places_of.setdefault(pending[place].prompt, []).append(place)
    return places_of


def measure_again(pending: PendingMasks, places: Sequence[int], prompt: PromptBatch, candidates: Candidates) -> None:
    """Replace masks of a prompt by those of newly decoded candidates.

    prompt: alone in its batch; its candidates are the first row.
    """
    olds = [pending[place] for place in places]
    chosen = Chosen(torch.zeros(len(olds), dtype=torch.int64), torch.tensor([old.column for old in olds]))
    # These masks have already passed the stability filter.
    view = replace(olds[0].view, cut=replace(olds[0].view.cut, stability_thresh=0.0))
    for place, old, new in zip(places, olds, measure_masks(candidates, chosen, prompt, view), strict=True):
        # Keep the score by which the masks are sorted.
        mask = replace(new.mask, predicted_iou=old.mask.predicted_iou)
        pending.put(place, replace(old, mask=mask, logits_window=new.logits_window, bilinear_map=new.bilinear_map))
