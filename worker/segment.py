"""The story of a job: a photo and a spec in, masks out.

Read it from ``segment`` down.  Everything that is arithmetic stands in the modules named here, in the order
in which they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from jobs.prompts import check_prompts_on_image
from jobs.record import Spec
from jobs.spec import BoxJob, EverythingJob, Output, PointJob
from worker.batches import run_behind
from worker.crops import lay_out, whole
from worker.decoder import Candidates
from worker.drafts import Drafts, View, draft_masks
from worker.images import Photo
from worker.masks import Chosen, Cut, Mask, choose_all, choose_best, choose_promising
from worker.model import SegmentationModel, batch_that_fits
from worker.prompts import (
    MaskInputs,
    PromptBatch,
    check_mask_inputs,
    count_grid_batches,
    grid_batches,
    group_prompts,
    prompt_batches,
)
from worker.suppression import better_of_overlapping, is_cut_off, smaller_crop_of_overlapping
from worker.work import SILENT, SegmentMetrics, Watch, Work


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The masks of a photo: in mode everything by score or, with crops, by crop (``crops_suppression``), else in the
    order of the prompts.
    """

    size_wh: tuple[int, int]
    masks: tuple[Mask, ...]
    metrics: SegmentMetrics


NO_MASKS: MaskInputs = MappingProxyType({})


def segment(
    photo: Photo,
    spec: Spec,
    model: SegmentationModel,
    watch: Watch = SILENT,
    mask_inputs: MaskInputs = NO_MASKS,
) -> Segmentation:
    """Segment a photo as the spec says.

    mask_inputs: what the prompts' own ``mask_input`` name.
    Raises InvalidPrompt for a prompt outside the photo or with a mask of another size than the model's, and whatever
    the watch raises.
    """
    check_prompts_on_image(spec.prompts, photo.size_wh)
    check_mask_inputs(spec.prompts, mask_inputs, model.family.low_hw)
    if isinstance(spec, EverythingJob):
        return _segment_everything(photo, spec, model, watch)
    return _segment_prompts(photo, spec, model, watch, mask_inputs)


def _segment_everything(photo: Photo, spec: EverythingJob, model: SegmentationModel, watch: Watch) -> Segmentation:
    """A grid of points on the image and on each crop; good, stable, whole masks; of those that overlap, the best."""
    params = spec.params
    cut = Cut(params.mask_threshold, params.stability_score_offset, params.stability_score_thresh)
    crops, points_per_batch = lay_out(photo.size_wh, params), batch_that_fits(model, params.points_per_batch)
    work = Work(watch, count_grid_batches(crops, points_per_batch), points_per_batch)
    found = Drafts()
    # A GPU decodes the next batch while this machine's cores measure the masks of the one before.
    behind = model.device.type == "cuda"
    for crop in crops:
        before = len(found)
        embedding = work.embed(model, photo, crop)
        batches = grid_batches(crop, embedding.frame, points_per_batch)
        view = View(embedding.frame, crop, photo.size_wh, cut, Output.LOGITS in spec.outputs)
        decoded = work.decoded(partial(model.family.decode, embedding), batches, found)
        chosen = (
            (batch, candidates, work.chosen(choose_promising(candidates, params.pred_iou_thresh)))
            for batch, candidates in decoded
        )
        run_behind((partial(_measure, found, view, *one) for one in _ready(chosen, behind)), in_thread=behind)
        if params.crops_suppression == "original" or len(crops) == 1:
            found.keep(partial(better_of_overlapping, iou_thresh=params.crops_nms_thresh), first=before)
        embedding = model.family.for_library(embedding)  # what ours prepared of it is not needed any more
        work.settle(model, embedding, found, first=before)
    if len(crops) > 1:
        choose = better_of_overlapping if params.crops_suppression == "library" else smaller_crop_of_overlapping
        found.keep(partial(choose, iou_thresh=params.crops_nms_thresh))
    return Segmentation(photo.size_wh, found.written(), work.metrics())


_Chosen = tuple[PromptBatch, Candidates, Chosen]


def _ready(chosen: Iterable[_Chosen], on_host: bool) -> Iterator[_Chosen]:
    """Bring the chosen masks over, where they are measured apart from the device that makes them."""
    for batch, candidates, some in chosen:
        yield batch, candidates.on_host(some.rows, some.columns) if on_host else candidates, some


def _measure(found: Drafts, view: View, batch: PromptBatch, candidates: Candidates, chosen: Chosen) -> None:
    """Measure a batch's chosen masks and keep those that their crop does not cut off."""
    for draft in draft_masks(candidates, chosen, batch, view):
        if not is_cut_off(draft.mask, view.size_wh):
            found.add(draft)


def _segment_prompts(
    photo: Photo, spec: PointJob | BoxJob, model: SegmentationModel, watch: Watch, mask_inputs: MaskInputs
) -> Segmentation:
    """One object for each prompt: its best candidate, or with multimask all three."""
    params = spec.params
    choose = choose_all if params.multimask else choose_best
    cut, crop = Cut(params.mask_threshold), whole(photo.size_wh)
    points_per_batch = batch_that_fits(model, params.points_per_batch)
    groups = group_prompts(spec.prompts, points_per_batch, padded=model.family.pads_prompts, masked=mask_inputs)
    work = Work(watch, len(groups), points_per_batch)
    found = Drafts()
    embedding = work.embed(model, photo, crop)
    view = View(embedding.frame, crop, photo.size_wh, cut, Output.LOGITS in spec.outputs)
    batches = prompt_batches(spec.prompts, groups, embedding.frame, mask_inputs)
    decoded = work.decoded(partial(model.family.decode, embedding, multimask=params.multimask), batches, found)
    for batch, candidates in decoded:
        for draft in draft_masks(candidates, work.chosen(choose(candidates)), batch, view):
            found.add(draft)
    embedding = model.family.for_library(embedding)
    # Beside others or not, a prompt's masks are those that it has alone.
    work.settle(model, embedding, found, together=1, multimask=params.multimask)
    answers = (
        replace(draft.written(), prompt=draft.prompt, candidate=draft.column if params.multimask else None)
        for draft in sorted(found, key=lambda draft: (draft.prompt, draft.column))
    )
    return Segmentation(photo.size_wh, tuple(answers), work.metrics())
