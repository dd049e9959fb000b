"""Norms over the features of a token, by name: PyTorch's own modules."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

Norm = Literal["layer", "rms"]


def feature_norm(kind: Norm, features: int) -> nn.Module:
    """A norm of the last dimension, with a gain per feature.

    Args:
        kind: `"layer"`, with a bias too (Ba et al. 2016, arXiv:1607.06450), or `"rms"`, which neither centres nor
            shifts (Zhang and Sennrich 2019, arXiv:1910.07467).
        features: size of the last dimension.
    """
    match kind:
        case "layer":
            return nn.LayerNorm(features)
        case "rms":
            return nn.RMSNorm(features)
    raise ValueError(f"norm must be one of {get_args(Norm)}, found {kind!r}")
