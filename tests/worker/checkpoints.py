"""Checkpoints of each family with random weights, tiny or of the published shape, saved as the library saves them.

With the default configurations, random weights make no masks: the vision tower's ``initializer_range`` is 1e-10 and the
scale of its positions is in the hundreds.  Here each layer preserves the variance of its input, and logits spread over
several units on both sides of 0.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

#: The side of the model's input, and of its low-resolution masks.
INPUT, LOW = 128, 64
_WIDTH = 32

_DECODER = {"hidden_size": _WIDTH, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": _WIDTH}
_PROMPTS = {"hidden_size": _WIDTH, "image_size": INPUT, "patch_size": 8, "mask_input_channels": 8}
_VIT = {
    "hidden_size": 48,
    "output_channels": _WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": INPUT,
    "patch_size": 8,
    "window_size": 6,
    "global_attn_indexes": [1, 2],
    "num_pos_feats": _WIDTH // 2,
    "mlp_dim": 96,
}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 12,
    "image_size": [INPUT, INPUT],
    "patch_kernel_size": [3, 3],
    "patch_stride": [2, 2],
    "patch_padding": [1, 1],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [12, 24, 48, 96],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 6, 4],
    "global_attention_blocks": [3],
}
_REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "label_names": ["none"],
    "num_classes": 1,
    "model_args": {
        "in_chans": 3,
        "features_only": True,
        "out_indices": [0, 1, 2, 3],
        "embed_dim": [8, 16, 24, 32],
        "depth": [1, 1, 1, 1],
    },
}

#: What of that is not the tiny one's own.
_REPVIT_M1 = ("in_chans", "features_only", "out_indices")


def save_tiny(kind: str, folder: Path, seed: int = 0) -> str:
    """Save a checkpoint of a family, by its ``model_type``, with its processor; return its folder."""
    network, processor = {"sam": _sam, "sam_hq": _sam_hq, "sam2": _sam2, "edgetam": _edgetam}[kind]()
    return _save(network, processor, folder, seed)


def save_published(kind: str, folder: Path, seed: int = 0) -> str:
    """Save a checkpoint of the shape that the smallest published one of a family has; return its folder."""
    backbone = {**_REPVIT, "model_args": {name: _REPVIT["model_args"][name] for name in _REPVIT_M1}}
    network, processor = {
        "sam": lambda: (SamModel(SamConfig()), SamProcessor(SamImageProcessor())),
        "sam_hq": lambda: (SamHQModel(SamHQConfig()), SamHQProcessor(SamImageProcessor())),
        "sam2": lambda: (Sam2Model(Sam2Config()), Sam2Processor(_sam2_images(1024))),
        "edgetam": lambda: (
            EdgeTamModel(
                EdgeTamConfig(vision_config={"backbone_config": backbone, "model_type": "edgetam_vision_model"})
            ),
            Sam2Processor(_sam2_images(1024)),
        ),
    }[kind]()
    return _save(network, processor, folder, seed)


def _save(network: Any, processor: Any, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    _initialise(network)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _sam() -> tuple[Any, Any]:
    config = SamConfig(
        vision_config=_VIT, prompt_encoder_config={**_PROMPTS, "image_embedding_size": 16}, mask_decoder_config=_DECODER
    )
    return SamModel(config), SamProcessor(_sam_images())


def _sam_hq() -> tuple[Any, Any]:
    config = SamHQConfig(
        vision_config=_VIT, prompt_encoder_config=_PROMPTS, mask_decoder_config={**_DECODER, "vit_dim": 48}
    )
    return SamHQModel(config), SamHQProcessor(_sam_images())


def _sam2() -> tuple[Any, Any]:
    vision = _pyramid(_HIERA, [96, 48, 24, 12], [[64, 64], [32, 32], [16, 16]])
    config = Sam2Config(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)
    return Sam2Model(config), Sam2Processor(_sam2_images(INPUT))


def _edgetam() -> tuple[Any, Any]:
    # RepViT's strides are fixed: its finest map is a quarter of the input.
    vision = _pyramid(_REPVIT, [32, 24, 16, 8], [[64, 64], [32, 32], [16, 16]])
    prompts = {**_PROMPTS, "image_size": 2 * INPUT, "patch_size": 16}
    config = EdgeTamConfig(
        vision_config={**vision, "model_type": "edgetam_vision_model"},
        prompt_encoder_config=prompts,
        mask_decoder_config=_DECODER,
    )
    return EdgeTamModel(config), Sam2Processor(_sam2_images(2 * INPUT))


def _pyramid(backbone: dict[str, Any], channels: list[int], sizes: list[list[int]]) -> dict[str, Any]:
    return {
        "backbone_config": backbone,
        "backbone_channel_list": channels,
        "backbone_feature_sizes": sizes,
        "fpn_hidden_size": _WIDTH,
    }


def _sam_images() -> Any:
    return SamImageProcessor(size={"longest_edge": INPUT}, pad_size={"height": INPUT, "width": INPUT})


def _sam2_images(side: int) -> Any:
    return Sam2ImageProcessor(size={"height": side, "width": side})


@torch.no_grad()
def _initialise(network: Any) -> None:
    for name, weight in [*network.named_parameters(), *network.named_buffers()]:
        if not weight.is_floating_point() or "running" in name:
            continue
        weight.copy_(_drawn(name, weight))
    if not network.mask_decoder.iou_prediction_head.sigmoid_output:
        network.mask_decoder.iou_prediction_head.proj_out.bias += 0.8  # or most would be below 0


def _drawn(name: str, weight: Tensor) -> Tensor:
    noise = torch.randn_like(weight)
    if "positional_embedding" in name:
        return noise  # about one wave over the image
    if weight.dim() < 2:
        # Gains of norms are near 1, biases near 0.
        is_gain = name.endswith("weight")
        return 1 + 0.1 * noise if is_gain else 0.1 * noise
    spread = noise / math.sqrt(weight[0].numel())
    if "embed" in name or "token" in name or name.endswith(("pos_embed", "no_memory_embedding")):
        return 0.5 * noise
    if "hypernetworks_mlps" in name or "hq_mask_mlp" in name:
        return 2 * spread
    if name.endswith(("encoder_conv2.weight", "compress_vit_conv2.weight")):
        return 0.3 * spread  # image features shared by all HQ masks
    return 1.2 * spread
