"""The fast decoder for SAM checkpoints: the library's masks in exact float32, several times faster.

How: each image is prepared once (``image_state``); prompts of any shape share a batch (``tokens``); the
transformer never materialises the image as changed by a prompt (``two_way``); a mask is upscaled on demand
(``upscaling``), after its predicted IoU is known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskfleet.worker.sam.candidates import Candidates, at_hand
from maskfleet.worker.sam.fast.core_pool import CorePool, in_parts
from maskfleet.worker.sam.fast.folding import fold
from maskfleet.worker.sam.fast.image_state import ImageState, UpscaleBias, biases_alone, image_state
from maskfleet.worker.sam.fast.low_rank import Scratch, indices, run_or_indices
from maskfleet.worker.sam.fast.tokens import PromptTokens, Tokens
from maskfleet.worker.sam.fast.two_way import LayerOutput, TwoWay
from maskfleet.worker.sam.fast.upscaling import Upscaling
from maskfleet.worker.sam.prompts import PromptBatch

#: The memory for the attention weights of prompts whose image side is processed together.  Measured on one core of an
#: EPYC (Zen 4): two prompts of ViT-B, 32 of the demo's model; more gain nothing on a CPU, while a GPU needs many.
_WEIGHTS_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}
#: The memory that decoded prompts may hold until their masks are computed.
HELD_ON_CPU_BYTES = 32 * 2**20
_HELD_BYTES = {"cpu": HELD_ON_CPU_BYTES, "cuda": 2 * 2**30}
#: A prompt of one point has two tokens: the point, and "not a point".
_POINT_TOKENS = 2
#: Vectors that a prompt's image is multiplied by, at least; those for masks that nobody wants are zeros.  A product's
#: rounding may depend on its shape, and a mask must not depend on which others are wanted.
_VECTORS = 3


class FastSam:
    """One SamModel's decoder.

    together: prompts to process at once; held_bytes: what decoded ones may hold until their masks are computed;
    both override the device's defaults.

    It computes in float32 whatever the network's precision: half precision is for the encoder, which takes most of the
    time on a GPU, while sums of squares in half precision would give other masks.  One step is in double precision, the
    last one of the wanted masks' tokens (``two_way``).
    """

    #: Whether a token for the object score precedes the others.
    scores_objects: ClassVar[bool] = False
    #: Whether the token "not a point" follows a box, too.
    ends_boxes: ClassVar[bool] = False

    @classmethod
    def unsuited(cls, network: Any) -> str | None:
        """Return why this decoder cannot run a network; None if it can, as for every published checkpoint."""
        decoder = network.mask_decoder
        layers = decoder.transformer.layers
        convolutions = (decoder.upscale_conv1, decoder.upscale_conv2)
        if len(layers) != 2:
            return f"its decoder has {len(layers)} layers instead of 2"
        if [layer.skip_first_layer_pe for layer in layers] != [True, False]:
            return "its decoder skips the tokens' positional encoding in other layers"
        if any(one.kernel_size != (2, 2) or one.stride != (2, 2) for one in convolutions):
            return "its upscaling uses other convolutions"
        if not isinstance(decoder.activation, torch.nn.GELU) or decoder.activation.approximate != "none":
            return "its upscaling uses another activation"
        return None

    def __init__(self, network: Any, together: int | None = None, held_bytes: int | None = None) -> None:
        decoder, prompt_encoder = (_in_float32(part) for part in (network.mask_decoder, network.prompt_encoder))
        device = decoder.iou_token.weight.device
        positions = network.get_image_wide_positional_embeddings()[0].flatten(1).t().float().contiguous()
        own = [decoder.obj_score_token.weight] if self.scores_objects else []
        output = torch.cat([*own, decoder.iou_token.weight, decoder.mask_tokens.weight])
        self._iou_place = len(own)
        self._fewest_tokens = len(output) + _POINT_TOKENS
        weights = 4 * self._fewest_tokens * decoder.config.num_attention_heads * len(positions)
        self._together = together or max(1, _share(_WEIGHTS_BYTES, device) // weights)
        with torch.inference_mode():
            self._folded = fold(decoder, positions)
            self._tokens = PromptTokens(prompt_encoder, output, ends_boxes=self.ends_boxes)
            self._core_pool = CorePool(device)
            self._two_way = TwoWay(decoder, self._folded, Scratch(device), self._core_pool, self._together)
            self._upscaling = Upscaling(decoder, self._folded)
        self._most_held_bytes = held_bytes or _share(_HELD_BYTES, device)
        self._decoder = decoder
        self._prompt_encoder = prompt_encoder

    @property
    def point_bytes(self) -> int:
        """The memory that a prompt of one point holds until its masks are computed, in bytes."""
        return self._held_bytes(self._fewest_tokens)

    def image_state(self, embeddings: Any) -> ImageState:
        """Prepare an image.  embeddings: the encoder's output, for SAM a tensor (1, C, h, w)."""
        with torch.inference_mode():
            return self._state_of(embeddings.float(), biases_alone(self._folded))

    def decode(self, state: ImageState, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Decode N prompts of any shapes on an image: three candidates for each, or one without multimask.

        Of SAM's four mask tokens the first is for a single mask, the others are for three.
        """
        with torch.inference_mode():
            candidates = self._candidates(state, batch)
            return candidates.from_column(1) if multimask else self._single(candidates)

    def _single(self, candidates: Candidates) -> Candidates:
        """Given a candidate for each mask token, return the one for a single mask."""
        return replace(candidates, predicted_iou=candidates.predicted_iou[:, :1])

    def _state_of(self, embedding: Tensor, upscale_bias: UpscaleBias, dense: Tensor | None = None) -> ImageState:
        """Prepare an image, with a mask prompt or the encoding of "no mask"."""
        if dense is None:
            dense = self._prompt_encoder.no_mask_embed.weight[:, :, None, None]
        return image_state(self._folded, self._decoder, embedding, dense, upscale_bias)

    def _candidates(self, state: ImageState, batch: PromptBatch) -> Candidates:
        """Decode prompts: a candidate for each mask token."""
        tokens = self._tokens.of(batch)
        if batch.mask_input is not None:
            return self._masked_candidates(state, tokens, batch.mask_input.to(tokens.values))
        at_once = max(1, self._most_held_bytes // self._held_bytes(tokens.values.shape[1]))
        everyone = range(len(tokens.values))
        if len(everyone) <= at_once:
            layer_output = self._two_way.run_layers(state, tokens)
            predicted_iou, object_score = self._judged(state, layer_output)
            return Candidates(predicted_iou, partial(self._logits, state, layer_output), object_score)
        # More than may be kept until masks are requested: decode in parts, and the chosen ones again.
        parts = in_parts(everyone, at_once)
        judged = [self._judged(state, self._two_way.run_layers(state, tokens.take(part))) for part in parts]
        predicted_iou, object_score = _joined(judged)
        return Candidates(predicted_iou, partial(self._logits_again, state, tokens, at_once), object_score)

    def _masked_candidates(self, state: ImageState, tokens: Tokens, mask_input: Tensor) -> Candidates:
        """Decode prompts with a mask, which changes the image: each prompt prepares its own.

        mask_input: (N, 4h, 4w).
        """
        judged, made = [], []
        for prompt in range(len(mask_input)):
            dense = self._prompt_encoder.mask_embed(mask_input[prompt, None, None])
            own = self._state_of(state.embedding, state.upscale_bias, dense)
            layer_output = self._two_way.run_layers(own, tokens.take([prompt]))
            judged.append(self._judged(own, layer_output))
            columns = torch.arange(judged[0][0].shape[1])
            made.append(self._logits(own, layer_output, torch.zeros_like(columns), columns))
        predicted_iou, object_score = _joined(judged)
        return at_hand(torch.stack(made), predicted_iou, object_score)

    def _judged(self, state: ImageState, layer_output: LayerOutput) -> tuple[Tensor, Tensor | None]:
        """Read the scores from the other tokens.  Returns predicted IoU (N, C) and object score (N,) or None."""
        everyone = range(len(layer_output.tokens))
        places = torch.arange(self._iou_place + 1, device=layer_output.tokens.device).expand(len(everyone), -1)
        attended = self._two_way.final_attention(state, layer_output, everyone, places)
        predicted_iou: Tensor = self._decoder.iou_prediction_head(attended[:, self._iou_place])
        if not self.scores_objects:
            return predicted_iou, None
        return predicted_iou, self._decoder.pred_obj_score_head(attended[:, 0])[:, 0]

    def _logits(self, state: ImageState, layer_output: LayerOutput, rows: Tensor, columns: Tensor) -> Tensor:
        """Compute masks of chosen candidates.

        rows, columns: (K,), columns of mask tokens, best in the host's memory.  Returns (K, 4h, 4w).
        """
        made = _empty_masks(len(rows), state)
        order, masks_of = _by_prompt(rows.tolist(), columns.tolist())
        if not order:
            return made
        prompts, most = list(masks_of), max(map(len, masks_of.values()))
        # Prompts with fewer wanted masks are padded with their first; the padding is not upscaled.
        filled = [[*masks, *masks[:1] * (most - len(masks))] for masks in masks_of.values()]
        places = [0, *accumulate(map(len, masks_of.values()))]
        with torch.inference_mode():
            masks = torch.tensor(filled)
            tokens = (self._iou_place + 1 + masks).to(made.device, non_blocking=True)
            attended = self._two_way.final_attention(state, layer_output, prompts, tokens, exactly=True)
            vectors = pad(self._upscaling.vectors(attended, masks), (0, 0, 0, max(0, _VECTORS - most)))

            def work(part: Sequence[int], scratch: Scratch) -> None:
                counts = [len(masks_of[prompts[number]]) for number in part]
                image = layer_output.image.take([prompts[number] for number in part])
                own = vectors[part[0] : part[-1] + 1]
                upscaled = self._upscaling.logits(state, image, own, scratch).flatten(0, 1)
                step = vectors.shape[1]
                wanted = [place * step + mask for place, count in enumerate(counts) for mask in range(count)]
                made[places[part[0]] : places[part[-1] + 1]] = upscaled[run_or_indices(wanted, made.device)]

            self._core_pool.each(work, in_parts(range(len(prompts)), self._together))
            return (
                made if order == sorted(order) else made[indices(torch.tensor(order).argsort().tolist(), made.device)]
            )

    def _logits_again(self, state: ImageState, tokens: Tokens, at_once: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Compute masks of prompts whose images were not kept."""
        made = _empty_masks(len(rows), state)
        with torch.inference_mode():
            for prompts in in_parts(sorted(set(rows.tolist())), at_once):
                layer_output = self._two_way.run_layers(state, tokens.take(prompts))
                part = torch.tensor(prompts, device=rows.device)
                here = torch.isin(rows, part)
                made[here] = self._logits(state, layer_output, torch.searchsorted(part, rows[here]), columns[here])
        return made

    def _held_bytes(self, tokens: int) -> int:
        """Return the bytes that a prompt with this many tokens, output included, holds until its masks are computed."""
        return 4 * 2 * (1 + self._folded.heads * (tokens - 1)) * len(self._folded.positions)


def _joined(judged: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Join the scores of the parts of a batch."""
    scores = [score for _, score in judged if score is not None]
    return torch.cat([predicted_iou for predicted_iou, _ in judged]), torch.cat(scores) if scores else None


def _empty_masks(count: int, state: ImageState) -> Tensor:
    height, width = state.size_hw
    return torch.empty(count, 4 * height, 4 * width, device=state.embedding.device)


def _share(of_kind: dict[str, int], device: torch.device) -> int:
    return of_kind[device.type if device.type in of_kind else "cuda"]


def _by_prompt(rows: list[int], columns: list[int]) -> tuple[list[int], dict[int, list[int]]]:
    """Sort candidates by prompt.  Returns their original places, and each prompt's columns."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    masks_of: dict[int, list[int]] = {}
    for place in order:
        masks_of.setdefault(rows[place], []).append(columns[place])
    return order, masks_of


def _in_float32(module: Any) -> Any:
    """Return the module itself if it is in float32, else a copy that is."""
    if all(weight.dtype == torch.float32 for weight in module.parameters()):
        return module
    return copy.deepcopy(module).float()
