"""Dropout of weights (Wan et al. 2013; on recurrent weights: Merity et al. 2017, arXiv:1708.02182).

The layer is called once with the dropped weights in place of its own, which stay as they are: nothing can go stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.func import functional_call

from equilibria.nn import drop_connect


def with_dropped_weights(layer: nn.Module, names: Sequence[str], probability: float, *inputs: Any) -> Any:
    """`layer(*inputs)`, in training with entries of the named weights zeroed and the rest scaled up for this call."""
    if not layer.training or probability == 0.0:
        return layer(*inputs)  # PyTorch's own kernels are quickest on a layer's own weights
    dropped = {name: drop_connect(layer.get_parameter(name), probability, layer.training) for name in names}
    return functional_call(layer, dropped, inputs)
