"""Norms over features, and normalised weights by PyTorch's parametrizations: `layer.weight` is then computed from what
is trained each time it is read, so nothing can go stale; a cell reads it once per solve."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from equilibria.nn.hooks import unhooked
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


def over_root_mean_square(x: Tensor) -> Tensor:
    """`x` over its root mean square over the last dimension, which is taken for `√ε` where it is less: `rms_norm`, but
    for how it treats next to nothing, in half of the time, since no tensor of squares is made."""
    if x.dtype not in (torch.float32, torch.float64):
        return torch.rms_norm(x, x.shape[-1:])  # in float32 inside
    features = x.shape[-1]
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    least = (features * torch.finfo(x.dtype).eps) ** 0.5
    return x / (size.clamp_min(least) * features**-0.5)


def bound_norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm of features does, its weights read once: a call of the module takes several times as long as the norm
    of one token. A module with hooks, and one of another kind, stays what is called."""
    if type(norm) not in (nn.LayerNorm, nn.RMSNorm) or not unhooked(norm):
        return norm
    if isinstance(norm, nn.RMSNorm):
        return partial(torch.rms_norm, normalized_shape=norm.normalized_shape, weight=norm.weight, eps=norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    settings = {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
    return partial(torch.layer_norm, normalized_shape=norm.normalized_shape, **settings)
