"""Transformer-XL's attention (Dai et al. 2019, arXiv:1901.02860); what does not depend on the states is bound once.

    scores = ((q + r_w)·k + (q + r_r)·W_r R(distance)) / √E,     [q, k, v] = W_qkv [memory; x] + injection

Once per solve: the memory's keys and values, `W_r R` over `√E`, and `r_w`, which is added to the injection, so that
an evaluation adds `r_r − r_w` to queries that come with `r_w`. Shapes: B batch, L length of the segment, M of the
memory, S = M + L, H heads, E head size, R = 1 + S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.attention import KeysValues, KeysValuesRoom
from equilibria.nn.dropout import masked
from equilibria.nn.normalisation import Normalisation, normalised, used_weight
from equilibria.nn.positions import relative_shift
from equilibria.ranges import whole


@dataclass(frozen=True)
class Surroundings:
    """What all blocks of a cell attend with, besides their states.

    Attributes:
        length: tokens of the segment, L.
        visible: True where a query may see a key, `(…, L, S)`; None where it may see all.
        injection_BLC: added to queries, keys and values, `C = 3 · d_model`; None for nothing.
        memory_injection_BMC: added to the memory's keys and values, `C = 2 · d_model`; None for nothing.
    """

    length: int
    visible: Tensor | None
    injection_BLC: Tensor | None = None
    memory_injection_BMC: Tensor | None = None


class RelativeAttention(nn.Module):
    """Multi-head causal self-attention with relative positions and two learned biases.

    Args:
        d_model: features in and out, a multiple of `heads`, even.
        heads: attention heads.
        bias: whether the output projection has one.
        interleaved: whether rows of `W_qkv` (and of the injection) are ordered by head, then query, key and value, and
            not by query, key and value, then head.
        output_norm: a layer norm before the output projection.
        normalisation: of the three weights.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        bias: bool = True,
        interleaved: bool = False,
        output_norm: bool = False,
        normalisation: Normalisation = "none",
    ) -> None:
        super().__init__()
        whole(1, d_model=d_model, heads=heads)
        if d_model % heads or d_model % 2:
            raise ValueError(f"d_model must be even and a multiple of heads, found {d_model} and {heads} heads")
        self.heads, self.head_size, self.interleaved = heads, d_model // heads, interleaved
        self.queries_keys_values = normalised(nn.Linear(d_model, 3 * d_model, bias=False), normalisation)
        self.distances = normalised(nn.Linear(d_model, d_model, bias=False), normalisation)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_size))
        self.distance_bias = nn.Parameter(torch.zeros(heads, self.head_size))
        self.output_norm = nn.LayerNorm(d_model) if output_norm else None
        self.output = normalised(nn.Linear(d_model, d_model, bias=bias), normalisation)

    def keys_values(self, rows: Tensor) -> Tensor:
        """Those rows of a weight or a bias, `(3 · d_model, …)`, that make keys and values."""
        if not self.interleaved:
            return rows[self.heads * self.head_size :]
        return rows.unflatten(0, (self.heads, 3, self.head_size))[:, 1:].flatten(0, 2)

    def distance_table(self, distances_SD: Tensor) -> Tensor:
        """A row of zeros, then projected embeddings of distances over `√E`, `(H, 1 + S, E)`."""
        distances_SHE = self.distances(distances_SD).unflatten(-1, (self.heads, -1))
        return F.pad(distances_SHE.transpose(0, 1) * self.head_size**-0.5, (0, 0, 1, 0))

    def bind(
        self,
        around: Surroundings,
        distances_HRE: Tensor,
        past: Tensor | KeysValues | None = None,
        dropout_BHLS: Tensor | None = None,
    ) -> BoundRelativeAttention:
        """Attention for one solve.

        Args:
            around: what all blocks share.
            distances_HRE: from the end of a `distance_table`: a row of anything, then the distances `S − 1, …, 0`.
            past: as of `SelfAttention`.
            dropout_BHLS: mask of the attention probabilities.
        """
        weight = used_weight(self.queries_keys_values)
        if isinstance(past, Tensor):
            keys_values = F.linear(past, self.keys_values(weight))
            if around.memory_injection_BMC is not None:
                keys_values = keys_values + around.memory_injection_BMC
            past = KeysValues(*self.split(keys_values, 2))
        # r_w where queries are, zeros where keys and values are.
        part, others = (1, (0, 0, 0, 2)) if self.interleaved else (0, (0, 0, 0, 0, 0, 2))
        addend_NC = F.pad(self.content_bias.unsqueeze(part), others).view(1, -1)
        if around.injection_BLC is not None:
            addend_NC = addend_NC + around.injection_BLC.flatten(0, 1)
        return BoundRelativeAttention(
            self,
            around.length,
            weight,
            used_weight(self.output),
            addend_NC,
            (self.distance_bias - self.content_bias).unsqueeze(1),
            distances_HRE,
            around.visible,
            past,
            dropout_BHLS,
        )

    def split(self, x_BLC: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Queries, keys and values, or the last two: each `(B, H, L, E)`."""
        if self.interleaved:
            return x_BLC.unflatten(-1, (self.heads, parts, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        return x_BLC.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


@dataclass(frozen=True)
class BoundRelativeAttention:
    """One block's attention during one solve.

    Attributes:
        queries_keys_values, output: the weights as used.
        addend_NC: added to queries, keys and values: the injection and `r_w`, `(B · L or 1, 3 · d_model)`.
        bias_change_HLE: `r_r − r_w`, `(H, 1, E)`.
        distances_HRE: a row of anything finite, then the projected distances over `√E`.
        columns_TS: for tokens that do not stand side by side, where each key's distance is in `distances_HRE`.
    """

    attention: RelativeAttention
    length: int
    queries_keys_values: Tensor
    output: Tensor
    addend_NC: Tensor
    bias_change_HLE: Tensor
    distances_HRE: Tensor
    visible: Tensor | None
    past: KeysValues | None
    dropout_BHLS: Tensor | None
    columns_TS: Tensor | None = None

    def __call__(self, x_BLD: Tensor) -> Tensor:
        """`(B, L, d_model) → (B, L, d_model)`."""
        projected = torch.addmm(self.addend_NC, x_BLD.flatten(0, 1), self.queries_keys_values.mT)
        q, k, v = self.attention.split(projected.unflatten(0, x_BLD.shape[:2]), 3)
        if self.past is not None:
            k, v = self.past.before(k, v)
        bias = (q + self.bias_change_HLE) @ self.distances_HRE.mT
        if self.columns_TS is None:
            bias = relative_shift(bias)
        else:
            bias = bias.gather(-1, self.columns_TS.expand(*bias.shape[:2], -1, -1))
        if self.visible is not None:
            bias = torch.where(self.visible, bias, -torch.inf)
        mixed = _attend(q, k, v, bias, self.dropout_BHLS).transpose(1, 2).flatten(-2)
        if self.attention.output_norm is not None:
            mixed = self.attention.output_norm(mixed)
        return F.linear(mixed, self.output, self.attention.output.bias)

    def at(self, row: int, tokens_T: Tensor) -> BoundRelativeAttention:
        """For some tokens of a row, in order, over a cache: they see what they see in the segment."""
        past, visible, addend_NC = self.past, self.visible, self.addend_NC
        if not isinstance(past, KeysValuesRoom):
            raise ValueError("tokens are evaluated apart only over a cache")
        seen = past.keys.shape[2]
        slots_T = seen - self.length + tokens_T
        keys_S = torch.arange(seen, device=slots_T.device)
        return replace(
            self,
            addend_NC=addend_NC if len(addend_NC) == 1 else addend_NC[row * self.length + tokens_T],
            visible=None if visible is None else visible[row if visible.dim() == 4 else ...][..., tokens_T, :],
            past=past.at(row, slots_T),
            # Keys of later tokens have no distance: any column does, for they are not visible.
            columns_TS=(seen - slots_T.unsqueeze(1) + keys_S).clamp_max(seen),
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, bias_BHLS: Tensor, dropout_BHLS: Tensor | None) -> Tensor:
    """`softmax(q·k / √E + bias)`, masked, times the values: `(B, H, L, E)`."""
    if dropout_BHLS is None and not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHLS)
    # With gradients: the fused CPU kernel takes no bias that requires them, and PyTorch's fallback is slower than this.
    # Besides, this can be differentiated twice, and takes our own mask.
    scale, groups = q.shape[-1] ** -0.5, q.shape[:2]
    scores = torch.baddbmm(bias_BHLS.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    return masked(scores.unflatten(0, groups).softmax(-1), dropout_BHLS) @ v
