"""The loss of a large vocabulary over a few tokens at a time: all scores of all tokens never exist at once.

PyTorch's chunked operator computes the gradients while it has the scores of a chunk, so nothing is recomputed.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
"""The target of a position that has none."""

_SCORES = {"cpu": 2**23}
_SCORES_ELSEWHERE = 2**27
"""Scores in a chunk: what fits the caches of a CPU; what keeps the matrix products of an accelerator large."""


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """`cross_entropy(linear(hidden, weight, bias), targets)` in nats, without the `(N, V)` scores.

    The mean is that over the targets that are not -100, NaN without any. The sum is taken in float32 at least, under
    autocast too. It can be differentiated once, and backwards: a derivative of its gradient, or one in forward mode,
    needs the plain formula.
    """
    precision = torch.promote_types(weight_VD.dtype, torch.float32)
    tokens = _SCORES.get(hidden_ND.device.type, _SCORES_ELSEWHERE) // len(weight_VD)
    options = nn.LinearCrossEntropyOptions(
        batch_chunk_size=max(1, tokens), acc_policy="compact", allow_retain_graph=True
    )
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return F.linear_cross_entropy(
            hidden_ND.to(precision),
            weight_VD.to(precision),
            targets_N,
            linear_bias=None if bias_V is None else bias_V.to(precision),
            reduction=reduction,
            ignore_index=IGNORED,
            options=options,
        )
