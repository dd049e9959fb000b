"""Initialisation as published with Transformer-XL and the DEQ transformers: normal with one small deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equilibria.nn.relative_attention import RelativeAttention
from equilibria.ranges import above

_READINGS = 15  # as many steps of power iteration as PyTorch takes for a layer's first weight


@torch.no_grad()
def initialise_normal(module: nn.Module, std: float) -> None:
    """Draw linear weights and the biases of relative attention from N(0, std²), gains of layer norms from N(1, std²);
    set other biases to 0. A weight that is normalised per output is what is drawn: its directions and norms follow;
    one of spectral norm is what is drawn over its largest singular value.

    Args:
        module: changed in place, with all its parts.
        std: 0.02 (Transformer-XL), 0.01 (the DEQ transformers).
    """
    above(0, initial_std=std)
    for part in module.modules():
        match part:
            case nn.Linear():
                _assign(part, torch.empty_like(part.weight).normal_(0.0, std))
                _zero(part.bias)
            case nn.LayerNorm(elementwise_affine=True):
                part.weight.normal_(1.0, std)
                _zero(part.bias)
            case RelativeAttention():
                part.content_bias.normal_(0.0, std)
                part.distance_bias.normal_(0.0, std)


def _assign(layer: nn.Linear, weight: Tensor) -> None:
    if not parametrize.is_parametrized(layer, "weight"):
        layer.weight.copy_(weight)
        return
    layer.weight = weight
    # What spectral norm knows of the singular vectors is of the weight before; a reading in training is a step to the
    # new ones.
    training = layer.training
    layer.train()
    for _ in range(_READINGS):
        _ = layer.weight
    layer.train(training)


def _zero(bias: nn.Parameter | None) -> None:
    if bias is not None:
        bias.zero_()
