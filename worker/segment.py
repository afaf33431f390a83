"""How a job is segmented: a photo and a spec in, masks out.

Read it from ``segment`` down.  All arithmetic stands in the modules named here, in the order in which they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from maskfleet.jobs.prompt_checks import check_mask_input_sizes, fit_prompts
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import BoxJob, EverythingJob, EverythingParams, Output, PointJob
from maskfleet.worker.candidates.keeping import Keeping
from maskfleet.worker.device_lock import NOT_SHARED, DeviceLock
from maskfleet.worker.image.decode import AnyPhoto
from maskfleet.worker.masks.borderline import borderline_prompts, measure_again
from maskfleet.worker.masks.choice import Chosen, Cut, View, choose_all, choose_best, choose_promising
from maskfleet.worker.masks.from_candidates import measure_masks
from maskfleet.worker.masks.memory import give_back
from maskfleet.worker.masks.suppression import better_of_overlapping, is_cut_off, is_good, smaller_crop_of_overlapping
from maskfleet.worker.measuring_thread import MeasuringThread
from maskfleet.worker.sam.candidates import Candidates
from maskfleet.worker.sam.crops import Crop, count_grid_batches, lay_out, whole
from maskfleet.worker.sam.embedding import Embedding
from maskfleet.worker.sam.model import SegmentationModel
from maskfleet.worker.sam.prompts import (
    MaskInputs,
    PromptBatch,
    grid_batches,
    group_prompts,
    prompt_batches,
)
from maskfleet.worker.sam.reference import ALONE, BatchSlot, grid_slot
from maskfleet.worker.segmentation import Segmentation, SegmentMetrics
from maskfleet.worker.stages import StageName, Turns, turns
from maskfleet.worker.steps import BOUNDS, SILENT, Bounds, KnownEmbedding, Steps, Watch

NO_MASKS: MaskInputs = MappingProxyType({})


def segment(
    photo: AnyPhoto,
    spec: Spec,
    model: SegmentationModel,
    watch: Watch = SILENT,
    mask_inputs: MaskInputs = NO_MASKS,
    bounds: Bounds = BOUNDS,
    known: KnownEmbedding | None = None,
    device_lock: DeviceLock = NOT_SHARED,
) -> Segmentation:
    """Segment a photo as the spec says.

    mask_inputs: the logits that the prompts' ``mask_input`` name, by the index of the prompt.
    known: the photo's embedding, which is computed if it is not there yet; None if it is not kept.
    device_lock: of the model's device; a grid of points waits for it, a few prompts do not.
    Raises InvalidPrompt for a prompt outside the photo or with a mask of another size than the model's, and whatever
    the watch raises.
    """
    if not isinstance(spec, EverythingJob):
        spec = spec.model_copy(update={"prompts": fit_prompts(spec.prompts, photo.size_wh)})
    sizes = {index: logits.shape for index, logits in mask_inputs.items()}
    check_mask_input_sizes(spec.prompts, sizes, model.family.low_hw)
    keeping = Keeping() if isinstance(spec, EverythingJob) and spec.params.keep_candidates else None
    steps = Steps(model, spec.params.points_per_batch, watch, bounds, known, keeping, device_lock)
    if isinstance(spec, EverythingJob):
        return _segment_everything(photo, spec, steps)
    return _segment_prompts(photo, spec, mask_inputs, steps)


def embed_only(
    photo: AnyPhoto, model: SegmentationModel, watch: Watch = SILENT, known: KnownEmbedding | None = None
) -> SegmentMetrics:
    """Embed a photo for later jobs, unless that was done before."""
    steps = Steps(model, 1, watch, BOUNDS, known)
    steps.embed(photo, whole(photo.size_wh))
    return steps.metrics()


def _segment_everything(photo: AnyPhoto, spec: EverythingJob, steps: Steps) -> Segmentation:
    """Segment a grid of points on image and crops; keep good, stable, whole masks, the best where they overlap."""
    params = spec.params
    crops = lay_out(photo.size_wh, params)
    steps.expect(count_grid_batches(crops, steps.points_per_batch))
    all_at_once = params.crops_suppression == "library" and len(crops) > 1

    for crop in crops:
        with steps.device_lock.wanted():
            _segment_crop(photo, crop, spec, steps, suppress=not all_at_once)

    # Suppress masks of different crops that overlap
    if len(crops) > 1:
        choose = better_of_overlapping if all_at_once else smaller_crop_of_overlapping
        steps.pending.keep(partial(choose, iou_thresh=params.crops_nms_thresh))

    kept = steps.keeping.gathered(crops, photo.size_wh, params) if steps.keeping else None
    return Segmentation(photo.size_wh, steps.pending.written(), steps.metrics(), kept)


def _segment_crop(photo: AnyPhoto, crop: Crop, spec: EverythingJob, steps: Steps, *, suppress: bool) -> None:
    """Add the masks of one crop.  suppress: those that overlap another of the same crop."""
    params, first = spec.params, len(steps.pending)
    first_kept = steps.keeping.begin_crop() if steps.keeping else 0

    # Embed
    embedding = steps.embed(photo, crop)
    cut = Cut(params.mask_threshold, params.stability_score_offset, params.lowest_stability_score_thresh)
    view = View(embedding.frame, crop, photo.size_wh, cut, Output.LOGITS in spec.outputs)

    # Decode the grid, filter by predicted IoU, measure on the original's pixels
    batches = grid_batches(crop, embedding.frame, steps.points_per_batch)
    _decode_grid(steps, embedding, view, batches, params)

    # Suppress masks that overlap
    if suppress:
        steps.pending.keep(partial(better_of_overlapping, iou_thresh=params.crops_nms_thresh), first)

    # Decode borderline masks again, in the batches that the library decodes them in
    embedding = steps.model.family.for_library(embedding)  # lets go of what the fast decoder prepared
    slot_of = partial(grid_slot, points=crop.points_per_side**2, points_per_batch=params.points_per_batch)
    _decode_borderline_again(steps, embedding, slot_of, first=first, first_kept=first_kept)


def _decode_grid(
    steps: Steps, embedding: Embedding, view: View, batches: Iterable[PromptBatch], params: EverythingParams
) -> None:
    """Decode batches and add the masks of good candidates: stable ones, which their crop does not cut off.

    More are measured if candidates are kept.
    """
    # A GPU decodes the next batch while this machine's cores measure the masks of the one before.
    wanted = steps.model.device.type != "cpu"
    with turns(StageName.MEASURE) as measure, MeasuringThread(wanted=wanted) as measuring:
        for batch, candidates in steps.decode(embedding, batches):
            chosen = steps.count(choose_promising(candidates, params.lowest_pred_iou_thresh))
            if measuring.wanted:
                candidates = candidates.on_host(chosen.rows, chosen.columns)
            measuring.run(partial(_measure_whole, measure, steps, view, batch, candidates, chosen, params))


def _measure_whole(
    measure: Turns,
    steps: Steps,
    view: View,
    batch: PromptBatch,
    candidates: Candidates,
    chosen: Chosen,
    params: EverythingParams,
) -> None:
    with measure.turn():
        for mask in measure_masks(candidates, chosen, batch, view):
            if is_cut_off(mask.mask, view.size_wh):
                continue
            if steps.keeping:
                steps.keeping.add(mask)
            if is_good(mask.mask, params):
                steps.pending.add(mask)


def _segment_prompts(photo: AnyPhoto, spec: PointJob | BoxJob, mask_inputs: MaskInputs, steps: Steps) -> Segmentation:
    """Segment one object for each prompt: its best candidate, or with multimask all three."""
    params, family = spec.params, steps.model.family
    groups = group_prompts(spec.prompts, steps.points_per_batch, padded=family.pads_prompts, masked=mask_inputs)
    steps.expect(len(groups))

    # Embed
    crop = whole(photo.size_wh)
    embedding = steps.embed(photo, crop)
    view = View(embedding.frame, crop, photo.size_wh, Cut(params.mask_threshold), Output.LOGITS in spec.outputs)

    # Decode the prompts, choose candidates, measure on the original's pixels
    batches = prompt_batches(spec.prompts, groups, embedding.frame, mask_inputs)
    _decode_prompts(steps, embedding, view, batches, params.multimask)

    # Decode borderline masks again: beside others or not, a prompt's masks are those that it has alone
    embedding = family.for_library(embedding)
    _decode_borderline_again(steps, embedding, lambda _: ALONE, multimask=params.multimask)

    # Put them in the order of the prompts
    masks = (
        replace(mask.written(), prompt=mask.prompt, candidate=mask.column if params.multimask else None)
        for mask in sorted(steps.pending, key=lambda mask: (mask.prompt, mask.column))
    )
    return Segmentation(photo.size_wh, tuple(masks), steps.metrics())


def _decode_prompts(
    steps: Steps, embedding: Embedding, view: View, batches: Iterable[PromptBatch], multimask: bool
) -> None:
    """Decode batches and add the masks of each prompt's best candidate, or of all three."""
    choose = choose_all if multimask else choose_best
    with turns(StageName.MEASURE) as measure:
        for batch, candidates in steps.decode(embedding, batches, multimask=multimask):
            with measure.turn():
                for mask in measure_masks(candidates, steps.count(choose(candidates)), batch, view):
                    steps.pending.add(mask)


def _decode_borderline_again(
    steps: Steps,
    embedding: Embedding,
    slot_of: Callable[[int], BatchSlot],
    *,
    first: int = 0,
    first_kept: int = 0,
    multimask: bool = True,
) -> None:
    """Replace the masks from first on that have too many borderline pixels by the library's own.

    embedding: for the library's decoder.  slot_of: of a prompt's index, where the library decodes it.  first_kept: the
    same as first, among the kept candidates.
    """
    if not steps.model.family.rounds_otherwise:
        return
    found = [(steps.pending, first), *([(steps.keeping.pending, first_kept)] if steps.keeping else [])]
    places_of = [(masks, borderline_prompts(masks, start, steps.bounds.borderline_pixels)) for masks, start in found]
    prompts = {
        index: masks[places[0]].prompt_alone() for masks, groups in places_of for index, places in groups.items()
    }
    if not prompts:
        return
    give_back()  # the library's decoder takes some 40 MB a prompt, in pieces that find no room among those freed before
    with turns(StageName.DECODE_PROMPTS) as decode, turns(StageName.MEASURE) as measure:
        for index, prompt in prompts.items():
            with decode.turn():
                candidates = steps.decode_again(embedding, prompt, slot_of(index), multimask=multimask)
            with measure.turn():
                for masks, groups in places_of:
                    if index in groups:
                        measure_again(masks, groups[index], prompt, candidates)
    give_back()
