"""The default cell: a transformer whose carry contracts.

    h = a ⊙ z + (1 − a) ⊙ e,   0 < a < 1 learned per channel, or per channel and token
    h ← h + Attention(LN(h)),  h ← h + FeedForward(LN(h))      for each block
    f(z; x) = LN(h)

The injection `e` enters every evaluation with weight `1 − a`, so that the carried state alone contracts; the outer
norm keeps states bounded. A normed injection cannot outgrow the state, so that depth stays in use.

Without injection, `h = z`: the explicit pre-norm transformer with the same blocks and one norm at the end. Attention is
causal, or of all tokens with each other, for grids and sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.cells.base import Cell, Past, place_of
from equilibria.cells.block import Block, BlockMap, BoundBlock
from equilibria.cells.cache import CacheView, Entry
from equilibria.nn.attention import AttentionPattern, KeysValues, Positions, SelfAttention
from equilibria.nn.dropout import dropout_mask
from equilibria.nn.feed_forward import Activation, FeedForward
from equilibria.nn.normalisation import Norm, Normalisation, bound_norm, feature_norm, over_root_mean_square
from equilibria.ranges import above, at_least, layers, probability, whole


class ContractiveBlock(Block):
    """A pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward, d_model: int, norm: Norm) -> None:
        super().__init__()
        self.attention_norm = feature_norm(norm, d_model)
        self.attention = attention
        self.feed_forward_norm = feature_norm(norm, d_model)
        self.feed_forward = feed_forward

    def bind(self, pattern: AttentionPattern, past: Tensor | KeysValues | None, *masks: Tensor | None) -> BoundBlock:
        """The block for one solve; `past` is its states at earlier positions, or the keys and values kept of them."""
        past = self.seen(past) if isinstance(past, Tensor) else past
        return self.around(self.attention.bind(pattern, past), self.feed_forward.bind(), *masks)


class ContractiveCell(Cell):
    """One or several pre-norm blocks behind a contracting carry and a gated injection.

    Args:
        d_model: features of the state, a multiple of `heads`, of `2 · heads` with rotary positions, of `4 · heads` on a
            grid.
        heads: attention heads.
        inner: features inside the feed-forward network.
        blocks: transformer blocks in one evaluation.
        dropout: probability of dropping a feature of a block's output; one mask `(B, L, D)` per solve.
        norm: the kind of all norms.
        causal: whether a token sees those before it, and not all others. Without, the cell is for grids and sets: it
            reads a sequence at once, and its solves have the scope "sample" or "all".
        positions: how attention knows of positions: "rotary" and "linear" along a sequence, "grid" by row and column,
            "none" not at all.
        columns: of the grid whose cells, row by row, are the tokens.
        query_key_norm: whether queries and keys are normed.
        query_key_gain: factor on queries and keys at the start. Above 1 it helps to find what is far away: at 3, a cell
            of 32 features learns to copy over 400 positions in 700 steps, at 1 it does not.
        key_value_heads: heads of keys and values, a divisor of `heads`; `heads` when None.
        activation: of the feed-forward network.
        normalisation: of the weights of attention and feed-forward network.
        strict: whether a token attends only to those before it, and not to itself, the first one to none. At an
            equilibrium the cell then follows a state through the tokens, such as the parity of bits: what a token reads
            is final before it is, and not mixed with a state of its own that is still wrong.
        slope_factor: on the slopes of linear positions. Above 1, heads look at nearer tokens: at 64, the steepest of
            four sees nothing but the nearest one, and the least steep about ten, at any distance from the start.
        carry: share of the carried state at the start, the same for all features. More of it is more depth: the cell
            learns more and converges slower.
        token_carry: the most, `s`, by which the logit of a token's own carry differs from that of all,
            `a = σ(c + s tanh(w · x / rms(x)))` with `w` 0 at the start; 0 for one carry for all tokens. The cell then
            learns which tokens need more evaluations than others. Without a bound most tokens would lose their carry,
            and with it their depth.
        injection_norm: whether the injection is divided by its root mean square over the features.
        injection: whether there are a carry and an input; without them the cell starts from the embedded inputs.
    """

    def __init__(
        self,
        d_model: int = 128,
        heads: int = 4,
        inner: int = 512,
        blocks: int = 1,
        dropout: float = 0.0,
        *,
        norm: Norm = "layer",
        causal: bool = True,
        positions: Positions = "rotary",
        columns: int | None = None,
        query_key_norm: bool = True,
        query_key_gain: float = 1.0,
        key_value_heads: int | None = None,
        activation: Activation = "relu",
        normalisation: Normalisation = "none",
        strict: bool = False,
        slope_factor: float = 1.0,
        carry: float = 0.7,
        token_carry: float = 0.0,
        injection_norm: bool = True,
        injection: bool = True,
    ) -> None:
        super().__init__()
        layers(blocks=blocks)
        whole(1, d_model=d_model)
        above(0, carry=carry)
        at_least(0, token_carry=token_carry)
        probability(carry=carry, dropout=dropout)
        self.d_model, self.layers_per_application, self.dropout = d_model, blocks, dropout
        self.heads, self.key_value_heads = heads, heads if key_value_heads is None else key_value_heads
        self.injection, self.injection_norm, self.remembered = injection, injection_norm, blocks
        self.causal, self.columns = causal, columns
        self.token_carry = token_carry
        self.inject = nn.Linear(d_model, d_model) if injection else None
        gate = torch.full((d_model,), math.log(carry / (1.0 - carry)))
        self.carry_logit = nn.Parameter(gate) if injection else None
        self.carry_weight = nn.Parameter(torch.zeros(d_model)) if injection and token_carry else None
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            attention = SelfAttention(
                d_model,
                heads,
                key_value_heads,
                positions,
                query_key_norm,
                normalisation,
                query_key_gain,
                strict=strict,
                slope_factor=slope_factor,
                causal=causal,
                columns=columns,
            )
            feed_forward = FeedForward(d_model, inner, activation, normalisation)
            self.blocks.append(ContractiveBlock(attention, feed_forward, d_model, norm))
        self.norm = feature_norm(norm, d_model)

    @property
    def cached(self) -> tuple[Entry, ...]:
        if not self.causal:
            raise ValueError("tokens that all see each other (causal = false) change with each one added: no cache")
        return ((self.key_value_heads, self.d_model // self.heads),) * (2 * len(self.blocks))

    @property
    def separable(self) -> bool:
        return self.causal

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> ContractiveMap:
        place, pattern, blocks = place_of(past), None, []
        for block, before in zip(self.blocks, self._before(past), strict=True):
            assert isinstance(block, ContractiveBlock)
            pattern = pattern or block.attention.pattern(inputs_BLD, place)
            masks = (dropout_mask(inputs_BLD, self.dropout, self.training) for _ in range(2))
            blocks.append(block.bind(pattern, before, *masks))
        if self.inject is None or self.carry_logit is None:
            return ContractiveMap(self, tuple(blocks), bound_norm(self.norm), None, None)
        logit = self.carry_logit
        if self.carry_weight is not None:
            gate_BL1 = F.linear(over_root_mean_square(inputs_BLD), self.carry_weight.unsqueeze(0))
            logit = torch.add(logit, torch.tanh(gate_BL1), alpha=self.token_carry)
        carry = torch.sigmoid(logit)
        injection_BLD = self.inject(inputs_BLD)
        if self.injection_norm:
            injection_BLD = over_root_mean_square(injection_BLD)
        injection_BLD = torch.addcmul(injection_BLD, carry, injection_BLD, value=-1.0)
        return ContractiveMap(self, tuple(blocks), bound_norm(self.norm), carry, injection_BLD)

    def _before(self, past: Past) -> Sequence[Tensor | KeysValues | None]:
        """What each block is given of the past."""
        if isinstance(past, CacheView):
            return past.rooms()
        return past.states if past is not None and past.length else (None,) * len(self.blocks)


@dataclass(frozen=True, eq=False)
class ContractiveMap(BlockMap[ContractiveCell]):
    """The cell bound, with its outer norm, its gate, `(D,)` or `(B, L, D)`, and the injection weighted by it; None
    without an input."""

    norm: Callable[[Tensor], Tensor]
    carry: Tensor | None
    injection: Tensor | None

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        h_BLD = self._carried(z_BLD)
        for block in self.blocks:
            h_BLD = block(h_BLD)
        return self.norm(h_BLD)

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        """The input of each block at `z`: with it, a later segment sees this one exactly at any depth."""
        states = [self._carried(z_BLD)]
        for block in self.blocks[:-1]:
            states.append(block(states[-1]))
        return tuple(states)

    def at(self, row: int, tokens_T: Tensor) -> ContractiveMap:
        carry, injection = self.carry, self.injection
        if carry is not None and carry.dim() > 1:
            carry = carry[row : row + 1, tokens_T]
        injection = None if injection is None else injection[row : row + 1, tokens_T]
        return ContractiveMap(self.cell, self.blocks_at(row, tokens_T), self.norm, carry, injection)

    def _carried(self, z_BLD: Tensor) -> Tensor:
        if self.carry is None or self.injection is None:
            return z_BLD
        return torch.addcmul(self.injection, self.carry, z_BLD)
