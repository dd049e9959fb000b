"""The published DEQ-Transformer cell (Bai, Kolter and Koltun 2019, arXiv:1909.01377), post-norm.

[q, k, v] = W_qkv [memory; z] + u,     u = injection of the embedded inputs, at memory positions too
scores    = ((q + r_w)·k + (q + r_r)·W_r R(distance)) / √E
a = LN(z + W_o attention),  f(z; x) = LN(a + W₂ relu(W₁ a)),   layer norms without affine parameters
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.cells.base import Cell, Memory
from equilibria.nn import FeedForward, dropout_mask, masked
from equilibria.nn.attention import KeysValues
from equilibria.nn.positions import distance_embedding, relative_shift


@dataclass(frozen=True)
class PostNormContext:
    """Injection to queries, keys and values, the memory's keys and values, projected distances, mask and dropout."""

    inputs: Tensor
    injection: Tensor
    memory: KeysValues | None
    distances_HSE: Tensor
    hidden_LS: Tensor
    attention_dropout: Tensor | None
    feed_forward_dropout: Tensor | None


class PostNormCell(Cell[PostNormContext]):
    """One post-norm Transformer-XL layer with input injection.

    Args:
        d_model: features of the state, a multiple of `heads`, even.
        heads: attention heads.
        inner: features inside the feed-forward network.
        dropout: probability of dropping a feature of a sublayer's output; one mask per solve.
    """

    layers_per_application = 1
    remembered = 2

    def __init__(self, d_model: int = 128, heads: int = 4, inner: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % heads or d_model % 2:
            raise ValueError(f"d_model must be even and a multiple of heads, found {d_model} and {heads} heads")
        self.d_model, self.heads, self.dropout = d_model, heads, dropout
        head_size = d_model // heads
        self.inject = nn.Linear(d_model, 3 * d_model)
        self.queries_keys_values = nn.Linear(d_model, 3 * d_model, bias=False)
        self.distances = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, head_size))
        self.distance_bias = nn.Parameter(torch.zeros(heads, head_size))
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward = FeedForward(d_model, inner)

    def context(self, inputs_BLD: Tensor, memory: Memory | None) -> PostNormContext:
        """Inject, project the memory's keys and values and the distances, draw the dropout masks."""
        length, past = inputs_BLD.shape[1], memory.length if memory is not None else 0
        remembered = None
        if memory is not None and past:
            states, inputs = memory.states
            keys_values = F.linear(states, self.queries_keys_values.weight[self.d_model :])
            injected = F.linear(inputs, self.inject.weight[self.d_model :], self.inject.bias[self.d_model :])
            keys, values = self._heads(keys_values + injected, 2)
            remembered = KeysValues(keys, values)
        distances = self.distances(distance_embedding(past + length, self.d_model, inputs_BLD))
        hidden = torch.ones(length, past + length, dtype=torch.bool, device=inputs_BLD.device)
        masks = (dropout_mask(inputs_BLD, self.dropout, self.training) for _ in range(2))
        return PostNormContext(
            inputs_BLD,
            self.inject(inputs_BLD),
            remembered,
            distances.unflatten(-1, (self.heads, -1)).transpose(0, 1),
            hidden.triu(diagonal=past + 1),
            *masks,
        )

    def forward(self, z_BLD: Tensor, context: PostNormContext) -> Tensor:
        """One evaluation."""
        q, k, v = self._heads(self.queries_keys_values(z_BLD) + context.injection, 3)
        if context.memory is not None:
            k = torch.cat([context.memory.keys, k], dim=2)
            v = torch.cat([context.memory.values, v], dim=2)
        by_distance = (q + self.distance_bias.unsqueeze(1)) @ context.distances_HSE.mT
        bias = relative_shift(by_distance) * q.shape[-1] ** -0.5
        bias = bias.masked_fill(context.hidden_LS, -torch.inf)
        mixed = F.scaled_dot_product_attention(q + self.content_bias.unsqueeze(1), k, v, attn_mask=bias)
        attended = self.output(mixed.transpose(1, 2).flatten(-2))
        a_BLD = self._norm(z_BLD + masked(attended, context.attention_dropout))
        fed = self.feed_forward(a_BLD)
        return self._norm(a_BLD + masked(fed, context.feed_forward_dropout))

    def remember(self, z_BLD: Tensor, context: PostNormContext) -> tuple[Tensor, ...]:
        """The equilibria and the embedded inputs, from which a later segment injects anew."""
        return z_BLD, context.inputs

    def _heads(self, x_BLD: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x_BLD.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _norm(self, x_BLD: Tensor) -> Tensor:
        return F.layer_norm(x_BLD, (self.d_model,))
