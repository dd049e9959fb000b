"""Normalised weights, by PyTorch's parametrizations: `layer.weight` is then computed from what is trained each time it
is read, so nothing can go stale; a cell reads it once per solve."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Normalisation = Literal["none", "weight", "spectral"]

Layer = TypeVar("Layer", bound=nn.Module)


def normalised(layer: Layer, normalisation: Normalisation) -> Layer:
    """The layer itself, its weight normalised from now on.

    Args:
        layer: has a `weight` whose first dimension is that of the outputs.
        normalisation: `"weight"`, direction and norm per output (Salimans and Kingma 2016, arXiv:1602.07868), or
            `"spectral"`, divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957), which is
            estimated by a step of power iteration each time the weight is read in training.
    """
    match normalisation:
        case "none":
            return layer
        case "weight":
            return weight_norm(layer, dim=0)  # pyright: ignore[reportReturnType]
        case "spectral":
            return spectral_norm(layer)  # pyright: ignore[reportReturnType]
    raise ValueError(f"normalisation must be one of {get_args(Normalisation)}, found {normalisation!r}")
