"""The position-wise network of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """`W₂ relu(W₁ x + b₁) + b₂`, position by position.

    Args:
        d_model: features in and out.
        inner: features of the hidden layer.
    """

    def __init__(self, d_model: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(d_model, inner)
        self.contract = nn.Linear(inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, d_model) → (…, d_model)`."""
        return self.contract(F.relu(self.expand(x), inplace=True))
