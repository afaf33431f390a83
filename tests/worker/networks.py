"""SAM networks of any shape with random weights that make a difference."""

from __future__ import annotations

from typing import Any

import torch
from transformers import SamConfig, SamModel


def random_sam(channels: int, heads: int, grid: int, *, seed: int = 0, **vision: Any) -> Any:
    """Make a SamModel with a decoder of a shape, and an encoder of one thin layer unless vision says more.

    The library's own start will not do: it draws the encoder with a spread of 1e-10, and all biases are zero.
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
    network: Any = SamModel(config).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
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


def random_embedding(network: Any, *, seed: int = 1) -> torch.Tensor:
    """Make an image embedding for a network, (1, C, h, w), without its encoder."""
    torch.manual_seed(seed)
    config = network.config.prompt_encoder_config
    side = config.image_embedding_size
    return torch.randn(1, config.hidden_size, side, side) * 0.5
