"""Causal attention whose keys and values of past segments are given, not recomputed.

Whatever does not depend on the states is in a context, made once per solve: weights, positions, what is visible, keys
and values of the memory. Shapes: B batch, L length of the segment, M of the memory, S = M + L, H heads, K heads of
keys and values, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.normalisation import Normalisation, normalised
from equilibria.nn.positions import Rotation, linear_biases

Positions = Literal["rotary", "linear", "none"]


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of a memory, both `(B, K, M, E)`."""

    keys: Tensor
    values: Tensor

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of memory and segment, `(B, K, S, E)`."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


@dataclass(frozen=True)
class AttentionPattern:
    """Where memory and segment stand and what a query may see: the same for all blocks of a cell.

    Attributes:
        before: the rotation of the memory's positions, None unless positions are rotary.
        here: that of the segment's.
        mask: `(L, S)` booleans, True where attention is allowed, or `(H, L, S)` biases; None for plain causality.
    """

    before: Rotation | None
    here: Rotation | None
    mask: Tensor | None


@dataclass(frozen=True)
class AttentionContext:
    """What attention needs besides the states: weights, the gain of normed queries and keys, pattern and memory."""

    queries_keys_values: Tensor
    output: Tensor
    gain_HE: Tensor | None
    pattern: AttentionPattern
    memory: KeysValues | None


class CausalAttention(nn.Module):
    """Multi-head causal self-attention through `scaled_dot_product_attention`.

    Args:
        d_model: features in and out.
        heads: heads; each has `d_model / heads` features, an even number for rotary positions.
        key_value_heads: heads of keys and values, a divisor of `heads`: each serves as many heads of queries (Ainslie
            et al. 2023, arXiv:2305.13245). None for as many as `heads`.
        positions: `"rotary"` angles, `"linear"` biases against distance, or `"none"`.
        query_key_norm: divide each query and key by its root mean square before positions are applied, with a learned
            gain per feature (Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442).
        query_key_gain: how many times larger than usual queries and keys are at the start, as the rows of their weight
            or, where they are normed, as the learned gain: their scores grow with its square, so that a head can tell
            tokens apart from the first step on. 1 changes nothing.
        normalisation: of both weights.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        key_value_heads: int | None = None,
        positions: Positions = "rotary",
        query_key_norm: bool = False,
        normalisation: Normalisation = "none",
        query_key_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {get_args(Positions)}, found {positions!r}")
        if d_model % heads or (positions == "rotary" and (d_model // heads) % 2):
            wanted = "2 · heads for rotary positions" if positions == "rotary" else "heads"
            raise ValueError(f"d_model must be a multiple of {wanted}, found d_model {d_model}, heads {heads}")
        key_value_heads = heads if key_value_heads is None else key_value_heads
        if key_value_heads < 1 or heads % key_value_heads:
            raise ValueError(f"key_value_heads must divide heads, found {key_value_heads} of {heads} heads")
        if not query_key_gain > 0:
            raise ValueError(f"query_key_gain must be above 0, found {query_key_gain}")
        self.heads, self.key_value_heads, self.head_size = heads, key_value_heads, d_model // heads
        self.positions: Positions = positions
        features = (heads + 2 * key_value_heads) * self.head_size
        queries_keys_values = nn.Linear(d_model, features, bias=False)
        if not query_key_norm:
            with torch.no_grad():
                queries_keys_values.weight[: (heads + key_value_heads) * self.head_size] *= query_key_gain
        self.queries_keys_values = normalised(queries_keys_values, normalisation)
        self.output = normalised(nn.Linear(d_model, d_model, bias=False), normalisation)
        gains = (nn.Parameter(torch.full((self.head_size,), query_key_gain)) for _ in range(2))
        self.query_gain, self.key_gain = gains if query_key_norm else (None, None)

    def pattern(self, like_BLD: Tensor, past: int) -> AttentionPattern:
        """Positions and mask of a segment `(B, L, ·)` after a memory of `past` tokens."""
        length, device = like_BLD.shape[1], like_BLD.device
        # Without a memory, plain causality needs no mask, and fused kernels are faster without one.
        mask_LS = causal_mask(length, past, device) if past else None
        match self.positions:
            case "rotary":
                positions = torch.arange(past + length, device=device).split((past, length))
                before, here = (Rotation.of(part, self.head_size, like_BLD.dtype) for part in positions)
                return AttentionPattern(before, here, mask_LS)
            case "linear":
                biases_HLS = linear_biases(self.heads, length, past, like_BLD)
                hidden_LS = ~causal_mask(length, past, device)
                return AttentionPattern(None, None, biases_HLS.masked_fill(hidden_LS, -torch.inf))
            case "none":
                return AttentionPattern(None, None, mask_LS)

    def context(self, pattern: AttentionPattern, memory_BMD: Tensor | None = None) -> AttentionContext:
        """What one solve needs; `memory_BMD` are the memory's states, as `forward` would be given them."""
        weight, gain_HE = self.queries_keys_values.weight, None
        if self.query_gain is not None and self.key_gain is not None:
            gains = (self.query_gain.expand(self.heads, -1), self.key_gain.expand(self.key_value_heads, -1))
            gain_HE = torch.cat(gains)
        remembered = None if memory_BMD is None else self.remember(memory_BMD, pattern.before, weight)
        return AttentionContext(weight, self.output.weight, gain_HE, pattern, remembered)

    def remember(self, x_BMD: Tensor, rotation: Rotation | None, weight: Tensor) -> KeysValues:
        """Keys and values of a memory's states, at the positions of `rotation`."""
        keys_values = F.linear(x_BMD, weight[self.heads * self.head_size :])
        keys, values = keys_values.unflatten(-1, (2, self.key_value_heads, -1)).unbind(-3)
        keys = self._placed(keys, self.key_gain, rotation)
        return KeysValues(keys.transpose(1, 2), values.transpose(1, 2))

    def forward(self, x_BLD: Tensor, context: AttentionContext) -> Tensor:
        """`(B, L, d_model) → (B, L, d_model)`."""
        H, K, pattern = self.heads, self.key_value_heads, context.pattern
        projected = F.linear(x_BLD, context.queries_keys_values).unflatten(-1, (H + 2 * K, self.head_size))
        q_k, v = projected.split((H + K, K), dim=-2)
        q, k = self._placed(q_k, context.gain_HE, pattern.here).transpose(1, 2).split((H, K), dim=1)
        v = v.transpose(1, 2)
        if context.memory is not None:
            k, v = context.memory.before(k, v)
        mask, causal, grouped = pattern.mask, pattern.mask is None, K != H
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return F.linear(mixed.transpose(1, 2).flatten(-2), context.output)

    def _placed(self, x_BLHE: Tensor, gain: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Queries or keys, normed where there is a gain and turned where there is a rotation."""
        if gain is not None:
            x_BLHE = F.rms_norm(x_BLHE, (self.head_size,)) * gain
        return x_BLHE if rotation is None else rotation.apply(x_BLHE)


def causal_mask(length: int, past: int, device: torch.device, window: int | None = None) -> Tensor:
    """`(L, S)` booleans, True where a query may see a key.

    Args:
        length: tokens of the segment, L.
        past: tokens of the memory before it.
        device: of the mask.
        window: keys that a query sees at most, its own among them; None for all.
    """
    allowed = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(diagonal=past)
    return allowed if window is None else allowed.triu(diagonal=past - window + 1)
