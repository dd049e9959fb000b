"""A transformer block: attention and a position-wise network, each with a residual and a norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from equilibria.cells.base import BoundMap, SomeCell
from equilibria.cells.cache import CacheView
from equilibria.nn.attention import BoundAttention, KeysValues
from equilibria.nn.dropout import add_masked
from equilibria.nn.feed_forward import BoundFeedForward, FeedForward
from equilibria.nn.normalisation import bound_norm
from equilibria.nn.relative_attention import BoundRelativeAttention


class Block(nn.Module):
    """What the blocks of all cells share; they differ in attention and norms.

    Attributes:
        pre_norm: whether a norm is that of what a sublayer reads, or that of the sum after it.
    """

    feed_forward: FeedForward
    attention_norm: nn.Module
    feed_forward_norm: nn.Module
    pre_norm: bool = True

    def seen(self, states: Tensor) -> Tensor:
        """States as the attention is given them."""
        return self.attention_norm(states) if self.pre_norm else states

    def around(
        self,
        attention: BoundAttention | BoundRelativeAttention,
        feed_forward: BoundFeedForward,
        attention_dropout: Tensor | None = None,
        feed_forward_dropout: Tensor | None = None,
    ) -> BoundBlock:
        """The block around its bound sublayers, for one solve."""
        norms = bound_norm(self.attention_norm), bound_norm(self.feed_forward_norm)
        return BoundBlock(self.pre_norm, *norms, attention, feed_forward, attention_dropout, feed_forward_dropout)


@dataclass(frozen=True, eq=False)
class BoundBlock:
    """A block during one solve; a dropout mask is None where nothing is dropped."""

    pre_norm: bool
    attention_norm: Callable[[Tensor], Tensor]
    feed_forward_norm: Callable[[Tensor], Tensor]
    attention: BoundAttention | BoundRelativeAttention
    feed_forward: BoundFeedForward
    attention_dropout: Tensor | None
    feed_forward_dropout: Tensor | None

    def __call__(self, z_BLD: Tensor) -> Tensor:
        """`(B, L, D) → (B, L, D)`."""
        if self.pre_norm:
            a_BLD = add_masked(z_BLD, self.attention(self.attention_norm(z_BLD)), self.attention_dropout)
            fed = self.feed_forward(self.feed_forward_norm(a_BLD))
            return add_masked(a_BLD, fed, self.feed_forward_dropout)
        a_BLD = self.attention_norm(add_masked(z_BLD, self.attention(z_BLD), self.attention_dropout))
        return self.feed_forward_norm(add_masked(a_BLD, self.feed_forward(a_BLD), self.feed_forward_dropout))

    def over(self, room: KeysValues) -> Self:
        """With other keys and values before it."""
        return replace(self, attention=replace(self.attention, past=room))

    def at(self, row: int, tokens_T: Tensor) -> Self:
        """Of some tokens of a row, over a cache."""
        return replace(self, attention=self.attention.at(row, tokens_T))


@dataclass(frozen=True, eq=False)
class BlockMap(BoundMap[SomeCell]):
    """A cell of blocks, bound."""

    blocks: tuple[BoundBlock, ...]

    def over(self, view: CacheView) -> Self:
        rooms = zip(self.blocks, view.rooms(), strict=True)
        return replace(self, blocks=tuple(block.over(room) for block, room in rooms))

    def blocks_at(self, row: int, tokens_T: Tensor) -> tuple[BoundBlock, ...]:
        """The blocks at some tokens of a row."""
        return tuple(block.at(row, tokens_T) for block in self.blocks)
