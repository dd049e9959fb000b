"""What the published transformer cells have in common: Transformer-XL's blocks (Dai et al. 2019, arXiv:1901.02860)
with the input injected into their queries, keys and values, at memory positions too.

All blocks of a cell read the same injection and the same memory, which is the previous segment's final state. Without
injection a block is a layer of Transformer-XL itself, to be stacked.

Dropout masks are drawn once per solve. With injection they are the published ones (Bai et al. 2019), equal at all
positions of a sample: `(B, 1, d_model)` after attention and after the feed-forward network, `(B, 1, inner)` inside it,
`(1, d_model)` on the embedded distances, of which there is one table, and `(B, H, L, S)` on attention probabilities.
Without injection they are drawn per position, as in Transformer-XL: `(B, L, ·)` and `(S, d_model)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.cells.base import Cell, Memory, Past, keys_values_rooms, place_of
from equilibria.cells.cache import CacheView, Entry
from equilibria.nn.attention import KeysValuesRoom, Place
from equilibria.nn.dropout import add_masked, dropout_mask, masked
from equilibria.nn.feed_forward import FeedForward, FeedForwardContext
from equilibria.nn.positions import distance_embedding
from equilibria.nn.relative_attention import RelativeAttention, RelativeContext, Surroundings

NormPosition = Literal["post", "pre"]


@dataclass(frozen=True)
class TransformerXLBlockContext:
    """What one block needs besides the state; a dropout mask is None where nothing is dropped."""

    attention: RelativeContext
    feed_forward: FeedForwardContext
    attention_dropout: Tensor | None
    feed_forward_dropout: Tensor | None


@dataclass(frozen=True)
class TransformerXLContext:
    """The embedded inputs, for a memory, and what each block needs."""

    inputs_BLD: Tensor
    blocks: tuple[TransformerXLBlockContext, ...]


class TransformerXLBlock(nn.Module):
    """Attention and feed-forward network, each with a residual and a layer norm.

    Args:
        attention: how tokens are mixed.
        feed_forward: the position-wise network.
        norm_position: `"post"`: the norm of the sum; `"pre"`: the sum with a function of the norm.
        affine: whether the norms have a gain and a bias.
    """

    def __init__(
        self, attention: RelativeAttention, feed_forward: FeedForward, norm_position: NormPosition, affine: bool
    ) -> None:
        super().__init__()
        if norm_position not in ("post", "pre"):
            raise ValueError(f'norm_position must be "post" or "pre", found {norm_position!r}')
        self.pre_norm = norm_position == "pre"
        d_model = attention.heads * attention.head_size
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d_model, elementwise_affine=affine)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(d_model, elementwise_affine=affine)

    def seen(self, states_BMD: Tensor) -> Tensor:
        """States as the attention is given them."""
        return self.attention_norm(states_BMD) if self.pre_norm else states_BMD

    def forward(self, z_BLD: Tensor, context: TransformerXLBlockContext) -> Tensor:
        """`(B, L, D) → (B, L, D)`."""
        mixed = self.attention(self.seen(z_BLD), context.attention)
        a_BLD = add_masked(z_BLD, mixed, context.attention_dropout)
        if self.pre_norm:
            fed = self.feed_forward(self.feed_forward_norm(a_BLD), context.feed_forward)
            return add_masked(a_BLD, fed, context.feed_forward_dropout)
        a_BLD = self.attention_norm(a_BLD)
        fed = self.feed_forward(a_BLD, context.feed_forward)
        return self.feed_forward_norm(add_masked(a_BLD, fed, context.feed_forward_dropout))


class TransformerXLCell(Cell[TransformerXLContext]):
    """Blocks of relative attention behind one another, around one injection and one memory.

    Args:
        blocks: at least one, of equal width and equally ordered heads.
        dropout: probability of dropping a feature of an embedded distance, a hidden layer or a sublayer's output.
        attention_dropout: probability of dropping an attention probability.
        window: tokens that a token sees at most, itself among them; None for all.
        injection: whether there is an input; without one the cell starts from the embedded inputs.
    """

    def __init__(
        self,
        blocks: Sequence[TransformerXLBlock],
        dropout: float,
        attention_dropout: float,
        window: int | None,
        injection: bool,
    ) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("blocks must be at least 1, found 0")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, found {window}")
        attention = blocks[0].attention
        self.d_model, self.heads = attention.heads * attention.head_size, attention.heads
        self.dropout, self.attention_dropout, self.window = dropout, attention_dropout, window
        self.layers_per_application, self.injection, self.remembered = len(blocks), injection, 2 if injection else 1
        self.inject = nn.Linear(self.d_model, 3 * self.d_model) if injection else None
        self.blocks = nn.ModuleList(blocks)

    @property
    def cached(self) -> tuple[Entry, ...]:
        """Keys and values of each block."""
        return ((self.heads, self.d_model // self.heads),) * (2 * len(self.blocks))

    @property
    def reach(self) -> int | None:
        """The rest of the window."""
        return None if self.window is None else self.window - 1

    def context(self, inputs_BLD: Tensor, memory: Past = None) -> TransformerXLContext:
        """Inject, project the memory's keys and values and the distances, read the weights, draw the masks."""
        place = place_of(memory)
        states = memory.states if isinstance(memory, Memory) and place.past else ()
        around = self._surroundings(inputs_BLD, place, states)
        rooms = keys_values_rooms(memory) if isinstance(memory, CacheView) else (None,) * len(self.blocks)
        tables = self._distance_tables(inputs_BLD, memory)
        blocks = (
            self._block_context(block, inputs_BLD, around, table, block.seen(states[0]) if states else room)
            for block, table, room in zip(self.typed_blocks(), tables, rooms, strict=True)
        )
        return TransformerXLContext(inputs_BLD, tuple(blocks))

    def over(self, context: TransformerXLContext, view: CacheView) -> TransformerXLContext:
        """The context with other keys and values before it."""
        pairs = zip(context.blocks, keys_values_rooms(view), strict=True)
        blocks = (replace(block, attention=replace(block.attention, past=room)) for block, room in pairs)
        return replace(context, blocks=tuple(blocks))

    def at(self, context: TransformerXLContext, row: int, tokens_T: Tensor) -> TransformerXLContext:
        """The context of some tokens of a row."""
        length = context.inputs_BLD.shape[1]
        blocks = (
            replace(block_context, attention=block.attention.at(block_context.attention, row, length, tokens_T))
            for block, block_context in zip(self.typed_blocks(), context.blocks, strict=True)
        )
        return TransformerXLContext(context.inputs_BLD[row : row + 1, tokens_T], tuple(blocks))

    def forward(self, z_BLD: Tensor, context: TransformerXLContext) -> Tensor:
        """One evaluation."""
        for block, block_context in zip(self.typed_blocks(), context.blocks, strict=True):
            z_BLD = block(z_BLD, block_context)
        return z_BLD

    def remember(self, z_BLD: Tensor, context: TransformerXLContext) -> tuple[Tensor, ...]:
        """The states that the cell is applied to and, with injection, the embedded inputs, to be injected anew."""
        return (z_BLD, context.inputs_BLD) if self.injection else (z_BLD,)

    def _surroundings(self, inputs_BLD: Tensor, place: Place, states: tuple[Tensor, ...]) -> Surroundings:
        visible = place.mask(inputs_BLD.shape[1], inputs_BLD.device, self.window)
        if self.inject is None:
            return Surroundings(visible)
        memory_injection = None
        if states:
            keys_values = next(self.typed_blocks()).attention.keys_values
            memory_injection = F.linear(states[1], keys_values(self.inject.weight), keys_values(self.inject.bias))
        return Surroundings(visible, self.inject(inputs_BLD), memory_injection)

    def _distance_tables(self, inputs_BLD: Tensor, past: Past) -> Iterator[Tensor]:
        """For each block, `(H, 1 + S, E)`."""
        seen = place_of(past).past + inputs_BLD.shape[1]
        if isinstance(past, CacheView):
            for block in self.typed_blocks():
                yield past.table(block, partial(self._distance_table, block, inputs_BLD))[:, -seen - 1 :]
            return
        distances_SD = distance_embedding(seen, self.d_model, inputs_BLD)
        # One table for the batch; with injection its mask is one row.
        table_SD = distances_SD[:1] if self.injection else distances_SD
        distances_SD = masked(distances_SD, dropout_mask(table_SD, self.dropout, self.training))
        for block in self.typed_blocks():
            yield block.attention.distance_table(distances_SD)

    def _distance_table(self, block: TransformerXLBlock, like: Tensor, length: int) -> Tensor:
        return block.attention.distance_table(distance_embedding(length, self.d_model, like))

    def _block_context(
        self,
        block: TransformerXLBlock,
        inputs_BLD: Tensor,
        around: Surroundings,
        distances_HRE: Tensor,
        past: Tensor | KeysValuesRoom | None,
    ) -> TransformerXLBlockContext:
        features = (self.d_model, block.feed_forward.contract.in_features, self.d_model)
        mixed, inner, fed = (self._mask(inputs_BLD, count) for count in features)
        B, L, _ = inputs_BLD.shape
        scores_BHLS = inputs_BLD.new_empty(()).expand(B, self.heads, L, distances_HRE.shape[1] - 1)
        probabilities = dropout_mask(scores_BHLS, self.attention_dropout, self.training)
        attention = block.attention.context(around, distances_HRE, past, probabilities)
        return TransformerXLBlockContext(attention, block.feed_forward.context(inner), mixed, fed)

    def _mask(self, inputs_BLD: Tensor, features: int) -> Tensor | None:
        batch, length = inputs_BLD.shape[:2]
        shape = torch.Size((batch, 1 if self.injection else length, features))
        return dropout_mask(inputs_BLD.new_empty(()).expand(shape), self.dropout, self.training)

    def typed_blocks(self) -> Iterator[TransformerXLBlock]:
        """The blocks, in order."""
        for block in self.blocks:
            assert isinstance(block, TransformerXLBlock)
            yield block


def share_position_biases(cells: Sequence[TransformerXLCell]) -> None:
    """Gives all blocks the two biases of relative attention that the first has: one parameter each, as in
    Transformer-XL's published PyTorch code (its TensorFlow code leaves the choice)."""
    first, *others = (block.attention for cell in cells for block in cell.typed_blocks())
    for attention in others:
        attention.content_bias, attention.distance_bias = first.content_bias, first.distance_bias
