"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature, then the `top_k` most likely tokens, then the smallest set with probability `top_p`.

    Args:
        temperature: 0 takes the most likely token.
        top_k: how many tokens stay in the draw, all when None.
        top_p: share of probability that stays in the draw, all when None (Holtzman et al. 2019, arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, found {self.top_p}")

    def draw(self, logits_BV: Tensor, generator: torch.Generator | None) -> Tensor:
        """One token per row: `(B, V) → (B,)`."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least = logits_BV.topk(self.top_k, dim=-1).values[..., -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = logits_BV.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token goes when those before it already hold the share; the first always stays.
            dropped = ordered.cumsum(dim=-1) - ordered >= self.top_p
            logits_BV = logits_BV.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
        return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator).squeeze(-1)
