"""Positions: rotary angles (Su et al. 2021, arXiv:2104.09864) and sinusoidal distances (Dai et al. 2019,
arXiv:1901.02860). Both are relative, so a memory of any length needs no offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BASE = 10_000.0


@dataclass(frozen=True)
class Rotation:
    """Unit complex numbers `(length, head_size / 2)`: position `t` turns feature pair `i` by `t · base^(−2i/size)`."""

    turn: Tensor

    @classmethod
    def of(cls, positions: Tensor, head_size: int, dtype: torch.dtype = torch.float32) -> Rotation:
        """The rotation of integer `positions` `(length,)` for heads of even size, in float64 or else float32."""
        if head_size % 2:
            raise ValueError(f"rotary positions need an even head size, found {head_size}")
        real = torch.promote_types(dtype, torch.float32)
        exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=real) / head_size
        angle = positions.to(real).unsqueeze(-1) * _BASE**-exponent
        return cls(torch.polar(torch.ones_like(angle), angle))

    def apply(self, x_BLHE: Tensor) -> Tensor:
        """Rotate `(…, length, heads, head_size)` by position."""
        pairs = torch.view_as_complex(x_BLHE.to(self.turn.dtype.to_real()).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn.unsqueeze(-2)).flatten(-2).to(x_BLHE.dtype)


def distance_embedding(length: int, features: int, like: Tensor) -> Tensor:
    """Sinusoidal embeddings of the distances `length − 1, …, 0`: `(length, features)`, sines then cosines."""
    distance = torch.arange(length - 1, -1, -1, device=like.device, dtype=torch.float32)
    exponent = torch.arange(0, features, 2, device=like.device, dtype=torch.float32) / features
    angle = distance.unsqueeze(-1) * _BASE**-exponent
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


def relative_shift(scores_BHLS: Tensor) -> Tensor:
    """Turn scores against distances `S − 1 … 0` into scores against the `S` key positions.

    Query `i` of `L` stands at key position `S − L + i`; its score for key `j` is the one of distance `S − L + i − j`.
    Entries of later keys are left arbitrary (finite) and must be masked.
    """
    B, H, L, S = scores_BHLS.shape
    padded = torch.nn.functional.pad(scores_BHLS, (1, 0)).reshape(B, H, S + 1, L)
    return padded[:, :, 1:].reshape(B, H, L, S)
