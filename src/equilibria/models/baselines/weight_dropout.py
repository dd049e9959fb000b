"""Dropout of weights (Wan et al. 2013; on recurrent weights: Merity et al. 2017, arXiv:1708.02182).

The layer is called once with the dropped weights in place of its own, which stay as they are: nothing can go stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


def with_dropped_weights(layer: nn.Module, names: Sequence[str], probability: float, *inputs: Any) -> Any:
    """`layer(*inputs)` with entries of the named weights zeroed and the rest scaled up, for this call."""
    if probability == 0.0:
        return layer(*inputs)
    dropped = {name: F.dropout(layer.get_parameter(name), probability) for name in names}
    return functional_call(layer, dropped, inputs)
