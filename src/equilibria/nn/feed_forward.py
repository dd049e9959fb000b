"""The position-wise network of a transformer block. Its weights are read once per solve, when it is bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.dropout import masked
from equilibria.nn.normalisation import Normalisation, normalised, used_weight
from equilibria.ranges import one_of, whole

Activation = Literal["relu", "gelu", "relu_squared", "swiglu"]


class FeedForward(nn.Module):
    """`W₂ φ(W₁ x + b₁) + b₂`, position by position.

    Args:
        d_model: features in and out.
        inner: features of the hidden layer.
        activation: `φ`. `"relu_squared"` is `relu(a)²` (So et al. 2021, arXiv:2109.08668); with `"swiglu"` the first
            layer has twice the features and `φ([a, b]) = silu(a) ⊙ b` (Shazeer 2020, arXiv:2002.05202), which makes for
            half as many weights again at equal `inner`.
        normalisation: of both weights.
    """

    def __init__(
        self, d_model: int, inner: int, activation: Activation = "relu", normalisation: Normalisation = "none"
    ) -> None:
        super().__init__()
        whole(1, d_model=d_model, inner=inner)
        one_of(Activation, activation=activation)
        self.activation: Activation = activation
        expanded = 2 * inner if activation == "swiglu" else inner
        self.expand = normalised(nn.Linear(d_model, expanded), normalisation)
        self.contract = normalised(nn.Linear(inner, d_model), normalisation)

    def bind(self, dropout: Tensor | None = None) -> BoundFeedForward:
        """The network for one solve; `dropout` masks the hidden layer, `(…, inner)`."""
        expand, contract = self.expand, self.contract
        return BoundFeedForward(
            self.activation, used_weight(expand), expand.bias, used_weight(contract), contract.bias, dropout
        )


@dataclass(frozen=True)
class BoundFeedForward:
    """The network's weights as used, and a dropout mask of the hidden layer, or None."""

    activation: Activation
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor
    dropout: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """`(…, d_model) → (…, d_model)`."""
        hidden = F.linear(x, self.expand, self.expand_bias)
        if self.activation == "relu":
            # A mask has no negative entry, so that it may come first: one hidden layer is saved instead of two.
            hidden = _activated("relu", masked(hidden, self.dropout))
        else:
            hidden = masked(_activated(self.activation, hidden), self.dropout)
        return F.linear(hidden, self.contract, self.contract_bias)


def _activated(activation: Activation, a: Tensor) -> Tensor:
    if activation == "gelu":
        return F.gelu(a)
    if activation == "swiglu":
        gate, value = a.chunk(2, dim=-1)
        return F.silu(gate) * value
    # In place without a graph; with one, `a` is a view, whose in-place gradient costs several copies.
    a = F.relu(a, inplace=not torch.is_grad_enabled())
    return a.square() if activation == "relu_squared" else a
