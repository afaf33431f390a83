"""SAM and SAM 2 networks of any shape with random weights that have an effect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel


def random_network(kind: str, channels: int, heads: int, grid: int) -> Any:
    """Make a SamModel or Sam2Model, by its ``model_type``."""
    return {"sam": random_sam, "sam2": random_sam2}[kind](channels, heads, grid)


def random_sam(channels: int, heads: int, grid: int, *, seed: int = 0, **vision: Any) -> Any:
    """Make a SamModel with a decoder of a shape, and an encoder of one thin layer unless vision says more.

    The library's own initialisation will not do: it draws the encoder with a spread of 1e-10, and all biases are zero.
    """
    torch.manual_seed(seed)
    thin = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "global_attn_indexes": [0]}
    config = SamConfig(
        vision_config={
            "image_size": 16 * grid,
            "output_channels": channels,
            "num_pos_feats": channels // 2,
            **thin,
            **vision,
        },
        prompt_encoder_config={
            "image_size": 16 * grid,
            "hidden_size": channels,
            "image_embedding_size": grid,
        },
        mask_decoder_config={
            "hidden_size": channels,
            "num_attention_heads": heads,
            "mlp_dim": 4 * channels,
            "iou_head_hidden_dim": channels,
        },
    )
    return _redrawn(SamModel(config))


def random_sam2(channels: int, heads: int, grid: int, *, seed: int = 0, **backbone: Any) -> Any:
    """Make a Sam2Model with a decoder of a shape, and a thin encoder unless the backbone says more."""
    torch.manual_seed(seed)
    thin = {
        "hidden_size": 8,
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "global_attention_blocks": [],
    }
    backbone = {"model_type": "sam2_hiera_det_model", "image_size": [16 * grid, 16 * grid], **thin, **backbone}
    config = Sam2Config(
        vision_config={
            "backbone_config": backbone,
            "backbone_channel_list": backbone["embed_dim_per_stage"][::-1],
            "backbone_feature_sizes": [[times * grid, times * grid] for times in (4, 2, 1)],
            "fpn_hidden_size": channels,
        },
        prompt_encoder_config={"image_size": 16 * grid, "hidden_size": channels},
        mask_decoder_config={
            "hidden_size": channels,
            "num_attention_heads": heads,
            "mlp_dim": 4 * channels,
            "iou_head_hidden_dim": channels,
        },
    )
    return _redrawn(Sam2Model(config))


def _redrawn(network: Any) -> Any:
    network.eval().requires_grad_(False)
    for name, weight in [*network.named_parameters(), *network.named_buffers()]:
        if "positional_embedding" in name:
            weight.normal_()
        elif "norm" in name:
            weight.add_(torch.randn_like(weight) * 0.2)
        elif weight.dim() == 4:  # a convolution
            weight.normal_(std=weight[0].numel() ** -0.5)
        elif weight.dim() == 2 and "embed" not in name and not name.endswith(("token.weight", "tokens.weight")):
            weight.normal_(std=weight.shape[1] ** -0.5)
        else:
            weight.normal_(std=0.3)
    return network


def random_embedding(network: Any, *, seed: int = 1) -> Tensor:
    """Make an image embedding for a network, (1, C, h, w), without its encoder."""
    torch.manual_seed(seed)
    config = network.config.prompt_encoder_config
    side = config.image_size // config.patch_size
    return torch.randn(1, config.hidden_size, side, side) * 0.5


def random_embeddings(network: Any, *, seed: int = 1) -> Any:
    """Make the output of a network's encoder: an embedding, for SAM 2 after two finer maps."""
    embedding = random_embedding(network, seed=seed)
    if isinstance(network, SamModel):
        return embedding
    _, channels, height, width = embedding.shape
    finer = [torch.randn(1, channels // (8 // k), 4 * height // k, 4 * width // k) * 0.5 for k in (1, 2)]
    return [*finer, embedding]


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors of an ``Embedding``'s values, whatever its family packs them in."""
    values = getattr(values, "embeddings", values)
    return [one for value in values for one in tensors(value)] if isinstance(values, list | tuple) else [values]
