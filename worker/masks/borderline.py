"""Masks with many borderline pixels: measured again on what the library's decoder makes of their prompts.

The fast decoder adds up in another order than the library's, so near the threshold a logit is off by some 1e-5.  Which
side a pixel on the threshold falls to is then chance, and a mask has the more of those the longer its outline is on the
original.  Only masks that were kept are looked at, and few have more than ``MAX_BORDERLINE_PIXELS``, so the library's
slow decoder sees a few prompts of a thousand (``maskfleet.worker.sam.reference``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from maskfleet.worker.masks.from_candidates import measure_masks
from maskfleet.worker.masks.mask import Chosen
from maskfleet.worker.masks.pending import PendingMasks
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.prompts import PromptBatch

#: Borderline pixels that a mask may have.
MAX_BORDERLINE_PIXELS = 5


def borderline_prompts(pending: PendingMasks, first: int, most: int) -> dict[int, list[int]]:
    """Find the masks from first on with more than so many borderline pixels.

    Returns the places of each prompt's, by the prompt's index.
    """
    places_of: dict[int, list[int]] = {}
    for place in range(first, len(pending)):
        if pending[place].borderline_pixels() > most:
            places_of.setdefault(pending[place].prompt, []).append(place)
    return places_of


def measure_again(pending: PendingMasks, places: Sequence[int], prompt: PromptBatch, candidates: Candidates) -> None:
    """Put in the place of a prompt's masks those that other candidates of the same prompt give.

    prompt: alone in its batch; the candidates' first row is its.
    """
    olds = [pending[place] for place in places]
    chosen = Chosen(torch.zeros(len(olds), dtype=torch.int64), torch.tensor([old.column for old in olds]))
    # They have been found stable.
    view = replace(olds[0].view, cut=replace(olds[0].view.cut, stability_thresh=0.0))
    for place, old, new in zip(places, olds, measure_masks(candidates, chosen, prompt, view), strict=True):
        # The order that they stand in is by these scores.
        mask = replace(new.mask, predicted_iou=old.mask.predicted_iou)
        pending.put(place, replace(old, mask=mask, outline=new.outline, geometry=new.geometry))
