"""Masks of which many pixels are in doubt: decoded once more as the library does it, so that they fall as its own.

The fast decoder adds up in another order than the library's, so near the threshold a logit is off by some 1e-5.  Which
side a pixel on the threshold falls to is then chance, and a mask has the more of those the longer its outline is on the
original.  Only masks that were kept are looked at, and few of them have more than MOST, so the library's slow decoder
sees a few prompts of a thousand.

The library's own last digits depend on how many prompts it decodes at once: those of four and of any multiple of four
are alike, those of fewer are others.  So a prompt is decoded again in the company that it has there.
See docs/decisions/0034-masks-in-doubt-are-decoded-again.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from worker.crew import in_parts
from worker.decoder import Candidates
from worker.drafts import Drafts, draft_masks
from worker.masks import Chosen
from worker.memory import give_back
from worker.prompts import PromptBatch, join

#: Pixels in doubt that a mask may have.
MOST = 5
#: The library rounds batches of so many prompts, and of their multiples, alike.
ALIKE = 4

Decode = Callable[[Iterable[PromptBatch]], Iterator[tuple[PromptBatch, Candidates]]]


def settle(found: Drafts, decode: Decode, first: int = 0, together: int = ALIKE) -> None:
    """Draft anew, from what the library decodes, the masks from first on that have too many pixels in doubt.

    They are all of one embedding.  decode: the library's, of batches one after the other.  together: most prompts that
    the library would decode at once, as far as it matters.
    """
    places_of: dict[int, list[int]] = {}
    for place in range(first, len(found)):
        if found[place].pixels_in_doubt() > MOST:
            places_of.setdefault(found[place].prompt, []).append(place)
    if places_of:
        # The library's decoder takes some 40 MB a prompt, in pieces that find no room among those freed before.
        give_back()
        _decode_again(found, decode, places_of, together)
        give_back()


def _decode_again(found: Drafts, decode: Decode, places_of: dict[int, list[int]], together: int) -> None:
    """Decode prompts anew and draft the masks that are theirs.  places_of: of each prompt; it is used up."""
    for batch, candidates in decode(_batches(found, places_of, together)):
        # A prompt that only fills its batch up is there twice, and asked for once.
        wanted = [(row, place) for row, index in enumerate(batch.indices) for place in places_of.pop(index, ())]
        if wanted:
            _draft_again(found, batch, candidates, wanted)


def _batches(found: Drafts, places_of: Mapping[int, Sequence[int]], together: int) -> list[PromptBatch]:
    """Put prompts together that were so in their batches, the last filled up with its first."""
    by_company: dict[int, list[PromptBatch]] = {}
    for places in places_of.values():
        draft = found[places[0]]
        company = min(together, len(draft.batch.indices))
        by_company.setdefault(company, []).append(draft.batch.alone(draft.row))
    return [
        join([*part, *[part[0]] * (company - len(part))])
        for company, prompts in by_company.items()
        for part in in_parts(prompts, company)
    ]


def _draft_again(found: Drafts, batch: PromptBatch, candidates: Candidates, wanted: Sequence[tuple[int, int]]) -> None:
    """Draft masks from other candidates.  wanted: each one's row in the batch, and its place among those found."""
    rows, places = zip(*wanted, strict=True)
    olds = [found[place] for place in places]
    chosen = Chosen(torch.tensor(rows), torch.tensor([old.column for old in olds]))
    view = olds[0].view
    # They have been found stable.
    news = draft_masks(candidates, chosen, batch, replace(view, cut=replace(view.cut, stability_thresh=0.0)))
    for place, old, new in zip(places, olds, news, strict=True):
        # The order that they stand in is by these scores.
        found.put(place, replace(new, mask=replace(new.mask, predicted_iou=old.mask.predicted_iou)))
