"""The fast way through a SAM checkpoint's decoder: the library's masks in exact float32, several times faster.

What it rests on: each image is prepared once (``image_state``); prompts of any shape share a batch
(``tokens``); the transformer never writes out what a prompt makes of the image (``two_way``); a mask is
upscaled when it is asked for (``upscaling``), after its predicted IoU is known.
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

from maskfleet.worker.sam.candidates import Candidates, at_hand
from maskfleet.worker.sam.fast.core_pool import Crew, in_parts
from maskfleet.worker.sam.fast.folding import fold
from maskfleet.worker.sam.fast.image_state import Added, ImageState, biases_alone, image_state
from maskfleet.worker.sam.fast.low_rank import Scratch, run_or_indices
from maskfleet.worker.sam.fast.tokens import PromptTokens, Tokens
from maskfleet.worker.sam.fast.two_way import Conversation, TwoWay
from maskfleet.worker.sam.fast.upscaling import Upscaling
from maskfleet.worker.sam.prompts import PromptBatch

#: What the attention weights of prompts may take whose image side is worked on together.  Measured on one core of an
#: EPYC (Zen 4): two prompts of ViT-B, 32 of the demo's model; more gain nothing on a CPU, while a GPU wants many.
_WEIGHTS_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}
#: What decoded prompts may hold until their masks are made.
HELD_ON_CPU_BYTES = 32 * 2**20
_HELD_BYTES = {"cpu": HELD_ON_CPU_BYTES, "cuda": 2 * 2**30}
#: A prompt of one point has two tokens: the point, and "not a point".
_POINT_TOKENS = 2


class FastSam:
    """One SamModel's decoder.

    together: prompts to work on at once; held_bytes: what decoded ones may hold until their masks are made; each where
    the device's own number does not serve.

    It computes in float32 whatever the network's precision is: half of it is for the encoder, where the time goes on a
    GPU, while sums of squares in half precision would give other masks.  One step is in double precision, the last that
    the tokens of wanted masks make (``two_way``).
    """

    #: Whether a token for the object score stands before the others.
    scores_objects: ClassVar[bool] = False
    #: Whether the token "not a point" stands behind a box too.
    ends_boxes: ClassVar[bool] = False

    @classmethod
    def unsuited(cls, network: Any) -> str | None:
        """Say why a network cannot go this way; None when it can.  Every published checkpoint can."""
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
            self._crew = Crew(device)
            self._two_way = TwoWay(decoder, self._folded, Scratch(device), self._crew, self._together)
            self._upscaling = Upscaling(decoder, self._folded)
        self._most_held_bytes = held_bytes or _share(_HELD_BYTES, device)
        self._decoder = decoder
        self._prompt_encoder = prompt_encoder

    @property
    def point_bytes(self) -> int:
        """What a prompt of one point holds until its masks are made."""
        return self._held_bytes(self._fewest_tokens)

    def image_state(self, embeddings: Any) -> ImageState:
        """Prepare an image.  embeddings: what the encoder makes of it, for SAM a tensor (1, C, h, w)."""
        with torch.inference_mode():
            return self._state_of(embeddings.float(), biases_alone(self._folded))

    def decode(self, state: ImageState, batch: PromptBatch, *, multimask: bool = True) -> Candidates:
        """Decode N prompts on an image, of any shapes: three candidates for each, or without multimask one.

        Of SAM's four mask tokens the first is for a single mask, the others for three.
        """
        with torch.inference_mode():
            candidates = self._candidates(state, batch)
            return candidates.from_column(1) if multimask else self._single(candidates)

    def _single(self, candidates: Candidates) -> Candidates:
        """Of a candidate for each mask token, give the one for a single mask."""
        return replace(candidates, predicted_iou=candidates.predicted_iou[:, :1])

    def _state_of(self, embedding: Tensor, added: Added, dense: Tensor | None = None) -> ImageState:
        """Prepare an image, with a mask prompt or what stands for none."""
        if dense is None:
            dense = self._prompt_encoder.no_mask_embed.weight[:, :, None, None]
        return image_state(self._folded, self._decoder, embedding, dense, added)

    def _candidates(self, state: ImageState, batch: PromptBatch) -> Candidates:
        """Decode prompts: a candidate for each mask token."""
        tokens = self._tokens.of(batch)
        if batch.mask_input is not None:
            return self._masked_candidates(state, tokens, batch.mask_input.to(tokens.values))
        at_once = max(1, self._most_held_bytes // self._held_bytes(tokens.values.shape[1]))
        everyone = range(len(tokens.values))
        if len(everyone) <= at_once:
            conversation = self._two_way.converse(state, tokens)
            predicted_iou, object_score = self._judged(state, conversation)
            return Candidates(predicted_iou, partial(self._logits, state, conversation), object_score)
        # More than may be held until somebody asks: they are heard in parts, and the chosen ones once more.
        parts = in_parts(everyone, at_once)
        judged = [self._judged(state, self._two_way.converse(state, tokens.take(part))) for part in parts]
        predicted_iou, object_score = _joined(judged)
        return Candidates(predicted_iou, partial(self._logits_again, state, tokens, at_once), object_score)

    def _masked_candidates(self, state: ImageState, tokens: Tokens, mask_input: Tensor) -> Candidates:
        """Decode prompts that bring a mask, which changes the image for each: every prompt prepares its own.

        mask_input: (N, 4h, 4w).
        """
        judged, made = [], []
        for prompt in range(len(mask_input)):
            dense = self._prompt_encoder.mask_embed(mask_input[prompt, None, None])
            own = self._state_of(state.embedding, state.added, dense)
            conversation = self._two_way.converse(own, tokens.take([prompt]))
            judged.append(self._judged(own, conversation))
            columns = torch.arange(judged[0][0].shape[1], device=mask_input.device)
            made.append(self._logits(own, conversation, torch.zeros_like(columns), columns))
        predicted_iou, object_score = _joined(judged)
        return at_hand(torch.stack(made), predicted_iou, object_score)

    def _judged(self, state: ImageState, conversation: Conversation) -> tuple[Tensor, Tensor | None]:
        """Ask the tokens that make no masks.  Returns predicted IoU (N, C) and object score (N,) if there is one."""
        everyone = range(len(conversation.tokens))
        places = torch.arange(self._iou_place + 1, device=conversation.tokens.device).expand(len(everyone), -1)
        concluded = self._two_way.conclude(state, conversation, everyone, places)
        predicted_iou: Tensor = self._decoder.iou_prediction_head(concluded[:, self._iou_place])
        if not self.scores_objects:
            return predicted_iou, None
        return predicted_iou, self._decoder.pred_obj_score_head(concluded[:, 0])[:, 0]

    def _logits(self, state: ImageState, conversation: Conversation, rows: Tensor, columns: Tensor) -> Tensor:
        """Make the masks of chosen candidates.  rows, columns: (K,), columns of mask tokens.  Returns (K, 4h, 4w)."""
        made = _empty_masks(len(rows), state)
        order, masks_of = _by_prompt(rows.tolist(), columns.tolist())
        if not order:
            return made
        prompts, most = list(masks_of), max(map(len, masks_of.values()))
        # Prompts of which fewer masks are wanted are filled up with their first; that is not upscaled.
        filled = [[*masks, *masks[:1] * (most - len(masks))] for masks in masks_of.values()]
        places = [0, *accumulate(map(len, masks_of.values()))]
        with torch.inference_mode():
            masks = torch.tensor(filled, device=made.device)
            tokens = self._iou_place + 1 + masks
            concluded = self._two_way.conclude(state, conversation, prompts, tokens, exactly=True)
            vectors = self._upscaling.vectors(concluded, masks)

            def work(part: Sequence[int], scratch: Scratch) -> None:
                counts = [len(masks_of[prompts[number]]) for number in part]
                image = conversation.image.take([prompts[number] for number in part])
                own = vectors[part[0] : part[-1] + 1, : max(counts)]
                upscaled = self._upscaling.logits(state, image, own, scratch).flatten(0, 1)
                wanted = [place * max(counts) + mask for place, count in enumerate(counts) for mask in range(count)]
                made[places[part[0]] : places[part[-1] + 1]] = upscaled[run_or_indices(wanted)]

            self._crew.each(work, in_parts(range(len(prompts)), self._together))
            return made if order == sorted(order) else made[torch.tensor(order, device=made.device).argsort()]

    def _logits_again(self, state: ImageState, tokens: Tokens, at_once: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Make masks of prompts whose images were not held."""
        made = _empty_masks(len(rows), state)
        with torch.inference_mode():
            for prompts in in_parts(sorted(set(rows.tolist())), at_once):
                conversation = self._two_way.converse(state, tokens.take(prompts))
                part = torch.tensor(prompts, device=rows.device)
                here = torch.isin(rows, part)
                made[here] = self._logits(state, conversation, torch.searchsorted(part, rows[here]), columns[here])
        return made

    def _held_bytes(self, tokens: int) -> int:
        """What a prompt of so many tokens, the output's included, holds until its masks are made."""
        return 4 * 2 * (1 + self._folded.heads * (tokens - 1)) * len(self._folded.positions)


def _joined(judged: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Put together what parts of a batch were judged."""
    scores = [score for _, score in judged if score is not None]
    return torch.cat([predicted_iou for predicted_iou, _ in judged]), torch.cat(scores) if scores else None


def _empty_masks(count: int, state: ImageState) -> Tensor:
    height, width = state.size_hw
    return torch.empty(count, 4 * height, 4 * width, device=state.embedding.device)


def _share(of_kind: dict[str, int], device: torch.device) -> int:
    return of_kind[device.type if device.type in of_kind else "cuda"]


def _by_prompt(rows: list[int], columns: list[int]) -> tuple[list[int], dict[int, list[int]]]:
    """Order candidates by prompt.  Returns the places they had, and each prompt's columns."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    masks_of: dict[int, list[int]] = {}
    for place in order:
        masks_of.setdefault(rows[place], []).append(columns[place])
    return order, masks_of


def _in_float32(module: Any) -> Any:
    """The module itself where it is in float32, else a copy that is."""
    if all(weight.dtype == torch.float32 for weight in module.parameters()):
        return module
    return copy.deepcopy(module).float()
