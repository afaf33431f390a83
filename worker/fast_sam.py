"""The fast way through a SAM checkpoint's decoder: the library's masks in exact float32, several times faster.

What it rests on: each image is prepared once (``worker.image_state``); prompts of any shape share a batch
(``worker.tokens``); the transformer never writes out what a prompt makes of the image (``worker.two_way``); a mask is
upscaled when it is asked for (``worker.upscaling``), after its predicted IoU is known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from worker.crew import Crew, in_parts
from worker.decoder import Candidates, at_hand
from worker.folding import fold
from worker.image_state import ImageState, image_state
from worker.low_rank import Scratch, run_or_indices
from worker.prompts import PromptBatch
from worker.tokens import PromptTokens, Tokens
from worker.two_way import Conversation, TwoWay
from worker.upscaling import Upscaling

#: What the attention weights of prompts may take whose image side is worked on together.  Measured on one core of an
#: EPYC (Zen 4): two prompts of ViT-B, 32 of the demo's model; more gain nothing on a CPU, while a GPU wants many.
_WEIGHTS_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}
#: What decoded prompts may hold until their masks are made.
HELD_ON_CPU_BYTES = 32 * 2**20
_HELD_BYTES = {"cpu": HELD_ON_CPU_BYTES, "cuda": 2 * 2**30}
#: The library's multimask output leaves the first mask token out, the one for a single mask.
_FIRST_MASK = 1


def unsuited(network: Any) -> str | None:
    """Say why a SamModel cannot go this way; None when it can.  Every published checkpoint can."""
    decoder = network.mask_decoder
    layers = decoder.transformer.layers
    convolutions = (decoder.upscale_conv1, decoder.upscale_conv2)
    if len(layers) != 2:
        return f"its decoder has {len(layers)} layers instead of 2"
    if [layer.skip_first_layer_pe for layer in layers] != [True, False]:
        return "its decoder adds the tokens' first form in other layers"
    if any(one.kernel_size != (2, 2) or one.stride != (2, 2) for one in convolutions):
        return "it upscales by other convolutions"
    if not isinstance(decoder.activation, torch.nn.GELU) or decoder.activation.approximate != "none":
        return "it upscales with another activation"
    return None


class FastSam:
    """One SamModel's decoder.  together: prompts to work on at once, where the device's own number does not serve.

    It computes in float32 whatever the network's precision is: half of it is for the encoder, where the time goes on a
    GPU, while sums of squares in half precision would give other masks.
    """

    def __init__(self, network: Any, together: int | None = None) -> None:
        decoder, prompt_encoder = (_in_float32(part) for part in (network.mask_decoder, network.prompt_encoder))
        device = decoder.iou_token.weight.device
        positions = network.get_image_wide_positional_embeddings()[0].flatten(1).t().float().contiguous()
        tokens = 1 + decoder.num_mask_tokens + 2
        weights = 4 * tokens * decoder.config.num_attention_heads * len(positions)
        self._together = together or max(1, _share(_WEIGHTS_BYTES, device) // weights)
        with torch.inference_mode():
            self._folded = fold(decoder, positions)
            self._tokens = PromptTokens(prompt_encoder, decoder)
            self._crew = Crew(device)
            self._two_way = TwoWay(decoder, self._folded, Scratch(device), self._crew, self._together)
            self._upscaling = Upscaling(decoder, self._folded)
        self._decoder = decoder
        self._prompt_encoder = prompt_encoder

    @property
    def point_bytes(self) -> int:
        """What a prompt of one point holds until its masks are made."""
        return self._held_bytes(1 + int(self._decoder.num_mask_tokens) + 2)

    def image_state(self, embedding: Tensor) -> ImageState:
        """Prepare an image.  embedding: (1, C, h, w)."""
        with torch.inference_mode():
            no_mask = self._prompt_encoder.no_mask_embed.weight[:, :, None, None]
            return image_state(self._folded, self._decoder, embedding.float(), no_mask)

    def decode(self, state: ImageState, batch: PromptBatch) -> Candidates:
        """Decode N prompts on an image, of any shapes: three candidates for each, their masks when asked for."""
        with torch.inference_mode():
            tokens = self._tokens.of(batch)
            if batch.mask_input is not None:
                return self._decode_masked(state, tokens, batch.mask_input.to(tokens.values))
            at_once = max(1, _share(_HELD_BYTES, tokens.values.device) // self._held_bytes(tokens.values.shape[1]))
            everyone = range(len(tokens.values))
            if len(everyone) <= at_once:
                conversation = self._two_way.converse(state, tokens)
                logits = partial(self._logits, state, conversation)
                return Candidates(self._predicted_iou(state, conversation), logits)
            # More than may be held until somebody asks: they are heard in parts, and the chosen ones once more.
            ious = [
                self._predicted_iou(state, self._two_way.converse(state, tokens.take(part)))
                for part in in_parts(everyone, at_once)
            ]
            return Candidates(torch.cat(ious), partial(self._logits_again, state, tokens, at_once))

    def _decode_masked(self, state: ImageState, tokens: Tokens, mask_input: Tensor) -> Candidates:
        """Decode prompts that bring a mask, which changes the image for each: every prompt prepares its own.

        mask_input: (N, 4h, 4w).
        """
        ious, made = [], []
        for prompt in range(len(mask_input)):
            dense = self._prompt_encoder.mask_embed(mask_input[prompt, None, None])
            own = image_state(self._folded, self._decoder, state.embedding, dense)
            conversation = self._two_way.converse(own, tokens.take([prompt]))
            ious.append(self._predicted_iou(own, conversation))
            columns = torch.arange(ious[0].shape[1])
            made.append(self._logits(own, conversation, torch.zeros_like(columns), columns))
        return at_hand(torch.stack(made), torch.cat(ious))

    def _predicted_iou(self, state: ImageState, conversation: Conversation) -> Tensor:
        """Ask the IoU token alone.  Returns (N, C)."""
        everyone = range(len(conversation.tokens))
        iou_token = torch.zeros(len(everyone), 1, dtype=torch.int64, device=conversation.tokens.device)
        concluded = self._two_way.conclude(state, conversation, everyone, iou_token)
        predicted: Tensor = self._decoder.iou_prediction_head(concluded[:, 0])[:, _FIRST_MASK:]
        return predicted

    def _logits(self, state: ImageState, conversation: Conversation, rows: Tensor, columns: Tensor) -> Tensor:
        """Make the masks of chosen candidates.  rows, columns: (K,).  Returns (K, 4h, 4w)."""
        made = _empty_masks(len(rows), state)
        order, masks_of = _by_prompt(rows.tolist(), columns.tolist())
        if not order:
            return made
        prompts, most = list(masks_of), max(map(len, masks_of.values()))
        # Prompts of which fewer masks are wanted are filled up with their first; that is not upscaled.
        filled = [[*masks, *masks[:1] * (most - len(masks))] for masks in masks_of.values()]
        places = [0, *accumulate(map(len, masks_of.values()))]
        with torch.inference_mode():
            masks = torch.tensor(filled, device=made.device) + _FIRST_MASK
            concluded = self._two_way.conclude(state, conversation, prompts, 1 + masks)
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
