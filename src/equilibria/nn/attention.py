"""Causal attention whose keys and values of past segments are given, not recomputed.

Shapes: B batch, L length of the segment, M of the memory, S = M + L, H heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.positions import Rotation


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of a memory, both `(B, H, M, E)`."""

    keys: Tensor
    values: Tensor


class RotaryAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions, through `scaled_dot_product_attention`.

    Args:
        d_model: features in and out.
        heads: heads; each has `d_model / heads` features, an even number.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if d_model % heads or (d_model // heads) % 2:
            raise ValueError(
                f"d_model must be a multiple of 2 · heads for rotary positions, found d_model {d_model}, heads {heads}"
            )
        self.heads, self.head_size = heads, d_model // heads
        self.queries_keys_values = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def remember(self, x_BMD: Tensor, rotation: Rotation) -> KeysValues:
        """Keys and values of a memory's states, at the positions of `rotation`."""
        weight = self.queries_keys_values.weight[x_BMD.shape[-1] :]
        keys, values = F.linear(x_BMD, weight).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return KeysValues(rotation.apply(keys).transpose(1, 2), values.transpose(1, 2))

    def forward(self, x_BLD: Tensor, rotation: Rotation, memory: KeysValues | None, mask_LS: Tensor | None) -> Tensor:
        """`(B, L, d_model) → (B, L, d_model)`; `mask_LS` is True where attention is allowed, None for plain causal."""
        projected = self.queries_keys_values(x_BLD).unflatten(-1, (3 * self.heads, self.head_size))
        q_k, v = projected.split((2 * self.heads, self.heads), dim=-2)
        q, k = rotation.apply(q_k).transpose(1, 2).chunk(2, dim=1)
        v = v.transpose(1, 2)
        if memory is not None:
            k, v = torch.cat([memory.keys, k], dim=2), torch.cat([memory.values, v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LS, is_causal=mask_LS is None)
        return self.output(mixed.transpose(1, 2).flatten(-2))


def causal_mask(length: int, memory_length: int, device: torch.device) -> Tensor | None:
    """`(L, S)` booleans, True where query `i` may see key `j`; None where plain causality says it all."""
    if memory_length == 0:
        return None
    allowed = torch.ones(length, memory_length + length, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=memory_length)
