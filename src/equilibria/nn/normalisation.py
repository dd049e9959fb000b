"""Norms over features, and normalised weights by PyTorch's parametrizations: `layer.weight` is then computed from what
is trained each time it is read, so nothing can go stale; a cell reads it once per solve."""

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from equilibria.ranges import one_of

Normalisation = Literal["none", "weight", "spectral"]
Norm = Literal["layer", "rms"]

Layer = TypeVar("Layer", bound=nn.Module)


def normalised(layer: Layer, normalisation: Normalisation) -> Layer:
    """The layer itself, its weight normalised from now on.

    Args:
        layer: has a `weight` whose first dimension is that of the outputs.
        normalisation: `"weight"`, direction and norm per output (Salimans and Kingma 2016, arXiv:1602.07868), or
            `"spectral"`, divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957), which is
            estimated by a step of power iteration each time the weight is read in training.
    """
    one_of(Normalisation, normalisation=normalisation)
    if normalisation == "weight":
        return weight_norm(layer, dim=0)  # pyright: ignore[reportReturnType]
    return spectral_norm(layer) if normalisation == "spectral" else layer  # pyright: ignore[reportReturnType]


def used_weight(layer: nn.Module) -> Tensor:
    """The weight `(out, in)` of a linear layer. What another library has put in the place of one, such as an adapter,
    says by its outputs for unit vectors which weight it has."""
    if isinstance(layer, nn.Linear):
        return layer.weight
    assert isinstance(layer.weight, Tensor)
    units = torch.eye(layer.weight.shape[1], dtype=layer.weight.dtype, device=layer.weight.device)
    return (layer(units) - layer(torch.zeros_like(units[:1]))).T


def feature_norm(kind: Norm, features: int) -> nn.Module:
    """A norm of the last dimension, with a gain per feature: `"layer"`, with a bias too (Ba et al. 2016,
    arXiv:1607.06450), or `"rms"`, which neither centres nor shifts (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    one_of(Norm, norm=kind)
    return nn.LayerNorm(features) if kind == "layer" else nn.RMSNorm(features)
