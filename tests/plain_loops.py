"""Layers in float64 written from their formulas, shared by the independent implementations of cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def weight_of(layer: nn.Linear) -> Tensor:
    """The weight; of a weight-normalised layer, gain and direction of each row put together."""
    parameters = dict(layer.named_parameters())
    if "weight" in parameters:
        return parameters["weight"]
    gain, direction = (parameters[f"parametrizations.weight.original{i}"] for i in range(2))
    return torch.stack([gain[row, 0] * v / math.sqrt(float((v * v).sum())) for row, v in enumerate(direction)])


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`W x + b` of one vector."""
    y = torch.stack([(row * x).sum() for row in weight_of(layer)])
    return y if layer.bias is None else y + layer.bias


def root_mean_square_normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """An RMS norm of one vector."""
    return x / torch.sqrt((x * x).sum() / len(x) + torch.finfo(x.dtype).eps) * norm.weight


def layer_normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm of one vector, with or without gain and bias."""
    centred = x - x.sum() / len(x)
    y = centred / torch.sqrt((centred * centred).sum() / len(x) + 1e-5)
    return y if norm.weight is None else y * norm.weight + norm.bias


def average(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    """Values weighted by the softmax of their scores."""
    shares = [math.exp(score) for score in scores]
    return torch.stack([share / sum(shares) * value for share, value in zip(shares, values, strict=True)]).sum(0)


def randomised(cell):
    """The cell in float64, none of its parameters at a special value."""
    cell = cell.double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell
