"""Initialisation as published with Transformer-XL and the DEQ transformers: normal with one small deviation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from equilibria.nn.relative_attention import RelativeAttention


@torch.no_grad()
def initialise_normal(module: nn.Module, std: float) -> None:
    """Draw linear weights and the biases of relative attention from N(0, std²), gains of layer norms from N(1, std²);
    set other biases to 0. A normalised weight is what is drawn: its direction and norm follow.

    Args:
        module: changed in place, with all its parts.
        std: 0.02 (Transformer-XL), 0.01 (the DEQ transformers).
    """
    if not std > 0:
        raise ValueError(f"the standard deviation of initial weights must be above 0, found {std}")
    for part in module.modules():
        match part:
            case nn.Linear():
                weight = torch.empty_like(part.weight).normal_(0.0, std)
                if parametrize.is_parametrized(part, "weight"):
                    part.weight = weight
                else:
                    part.weight.copy_(weight)
                _zero(part.bias)
            case nn.LayerNorm(elementwise_affine=True):
                part.weight.normal_(1.0, std)
                _zero(part.bias)
            case RelativeAttention():
                part.content_bias.normal_(0.0, std)
                part.distance_bias.normal_(0.0, std)


def _zero(bias: nn.Parameter | None) -> None:
    if bias is not None:
        bias.zero_()
