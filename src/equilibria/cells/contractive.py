"""The default cell: a transformer whose carry contracts.

    h = a ⊙ z + (1 − a) ⊙ e,   0 < a < 1 learned per channel
    h ← h + Attention(LN(h)),  h ← h + FeedForward(LN(h))      for each block
    f(z; x) = LN(h)

The injection `e` enters every evaluation with weight `1 − a`, so that the carried state alone contracts; the outer
norm keeps states bounded. Keys and values of the memory, the injection and dropout masks make up the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equilibria.cells.base import Cell, Memory
from equilibria.nn import FeedForward, RotaryAttention, Rotation, causal_mask, dropout_mask, masked
from equilibria.nn.attention import KeysValues

# The share of the carried state at the start: larger learns no better and converges slower, smaller learns slower.
_CARRY = 0.3


@dataclass(frozen=True)
class BlockContext:
    """What one block of the cell needs besides the state."""

    memory: KeysValues | None
    attention_dropout: Tensor | None
    feed_forward_dropout: Tensor | None


@dataclass(frozen=True)
class ContractiveContext:
    """The gate and the injection it has already weighted, positions, the mask and the blocks' own contexts."""

    carry: Tensor
    injection: Tensor
    rotation: Rotation
    mask_LS: Tensor | None
    blocks: tuple[BlockContext, ...]


class Block(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, d_model: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = RotaryAttention(d_model, heads)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, inner)

    def forward(self, h_BLD: Tensor, rotation: Rotation, mask_LS: Tensor | None, context: BlockContext) -> Tensor:
        """`(B, L, D) → (B, L, D)`."""
        mixed = self.attention(self.attention_norm(h_BLD), rotation, context.memory, mask_LS)
        h_BLD = h_BLD + masked(mixed, context.attention_dropout)
        fed = self.feed_forward(self.feed_forward_norm(h_BLD))
        return h_BLD + masked(fed, context.feed_forward_dropout)


class ContractiveCell(Cell[ContractiveContext]):
    """One or several pre-norm blocks behind a contracting carry and a gated injection.

    Args:
        d_model: features of the state, a multiple of `2 · heads`.
        heads: attention heads.
        inner: features inside the feed-forward network.
        blocks: transformer blocks in one evaluation.
        dropout: probability of dropping a feature of a block's output; one mask per solve.
    """

    def __init__(
        self, d_model: int = 128, heads: int = 4, inner: int = 512, blocks: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, found {blocks}")
        self.d_model, self.layers_per_application, self.dropout = d_model, blocks, dropout
        self.remembered = blocks
        self.inject = nn.Linear(d_model, d_model)
        self.carry_logit = nn.Parameter(torch.full((d_model,), math.log(_CARRY / (1.0 - _CARRY))))
        self.blocks = nn.ModuleList(Block(d_model, heads, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(d_model)
        self.head_size = d_model // heads

    def context(self, inputs_BLD: Tensor, memory: Memory | None) -> ContractiveContext:
        """Gate the injection, project the memory's keys and values, draw the dropout masks."""
        length, past = inputs_BLD.shape[1], memory.length if memory is not None else 0
        positions = torch.arange(past + length, device=inputs_BLD.device)
        before, here = (Rotation.of(part, self.head_size, inputs_BLD.dtype) for part in positions.split((past, length)))
        carry = torch.sigmoid(self.carry_logit)
        blocks = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            remembered = None
            if memory is not None and past:
                remembered = block.attention.remember(block.attention_norm(memory.states[index]), before)
            masks = (dropout_mask(inputs_BLD, self.dropout, self.training) for _ in range(2))
            blocks.append(BlockContext(remembered, *masks))
        return ContractiveContext(
            carry=carry,
            injection=(1.0 - carry) * self.inject(inputs_BLD),
            rotation=here,
            mask_LS=causal_mask(length, past, inputs_BLD.device),
            blocks=tuple(blocks),
        )

    def forward(self, z_BLD: Tensor, context: ContractiveContext) -> Tensor:
        """One evaluation."""
        h_BLD = torch.addcmul(context.injection, context.carry, z_BLD)
        for block, block_context in zip(self.blocks, context.blocks, strict=True):
            h_BLD = block(h_BLD, context.rotation, context.mask_LS, block_context)
        return self.norm(h_BLD)

    def remember(self, z_BLD: Tensor, context: ContractiveContext) -> tuple[Tensor, ...]:
        """The input of each block at `z`: with it, a later segment's view of this one is exact for any depth."""
        h_BLD = torch.addcmul(context.injection, context.carry, z_BLD)
        states = [h_BLD]
        for block, block_context in zip(self.blocks[:-1], context.blocks[:-1], strict=True):
            h_BLD = block(h_BLD, context.rotation, context.mask_LS, block_context)
            states.append(h_BLD)
        return tuple(states)
