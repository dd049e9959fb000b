"""The published transformer cells: Transformer-XL's blocks (Dai et al. 2019, arXiv:1901.02860) with the input injected
into their queries, keys and values, at memory positions too.

    [q, k, v] = W_qkv [memory; z] + u,     u = injection of the embedded inputs
    scores    = ((q + r_w)·k + (q + r_r)·W_r R(distance)) / √E

    post-norm:  a = LN(z + W_o attention),                        f(z; x) = LN(a + W₂ relu(W₁ a))
    pre-norm:   a = z + W_o attention, of LN [memory; z],         f(z; x) = a + W₂ relu(W₁ LN(a))

All blocks of a cell read the same injection and the same memory, the previous segment's final state. Without injection
a block is a layer of Transformer-XL itself, to be stacked.

Dropout masks are drawn once per solve. With injection they are the published ones (Bai et al. 2019), equal at all
positions of a sample: `(B, 1, d_model)` after attention and after the feed-forward network, `(B, 1, inner)` inside it,
`(1, d_model)` on the embedded distances, of which there is one table, and `(B, H, L, S)` on attention probabilities.
Without injection they are drawn per position, as in Transformer-XL: `(B, L, ·)` and `(S, d_model)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from equilibria.cells.base import Cell, Memory, Past, place_of
from equilibria.cells.block import Block, BlockMap, BoundBlock
from equilibria.cells.cache import CacheView, Entry
from equilibria.nn.attention import KeysValues, Place
from equilibria.nn.dropout import dropout_mask, masked
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.normalisation import Normalisation, used_weight
from equilibria.nn.positions import distance_embedding
from equilibria.nn.relative_attention import RelativeAttention, Surroundings
from equilibria.ranges import above, layers, one_of, probability, whole

NormPosition = Literal["post", "pre"]
_READINGS = 15  # as many steps of power iteration as PyTorch takes for a layer's first weight


class TransformerXLBlock(Block):
    """A block of relative attention, whose norms have a gain and a bias where they are `affine`."""

    def __init__(self, attention: RelativeAttention, feed_forward: FeedForward, pre_norm: bool, affine: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        d_model = attention.heads * attention.head_size
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d_model, elementwise_affine=affine)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(d_model, elementwise_affine=affine)


class TransformerXLCell(Cell):
    """Blocks of relative attention behind one another, around one injection and one memory.

    Its defaults are the DEQ-Transformer's cell (Bai, Kolter and Koltun 2019, arXiv:1909.01377; 2021, arXiv:2106.14342).
    That of the 2023 model (Geng and Kolter, TorchDEQ, arXiv:2310.18605) has three `interleaved` blocks with
    `norm_position="pre"`, `affine` and `output_norm`. No norm follows its last block, so states grow with the number of
    applications: the published model applies it twelve times from zero and is at no fixed point then.

    Args:
        d_model: features of the state, a multiple of `heads`, even.
        heads: attention heads.
        inner: features inside each feed-forward network.
        dropout: probability of dropping a feature of an embedded distance, a hidden layer or a sublayer's output.
        attention_dropout: probability of dropping an attention probability.
        norm_position: `"post"`, norms of the sums, as in 2019, or `"pre"`, norms of what a sublayer reads. The code
            published for the latter adds the feed-forward network to its normed input; here, as in its later version,
            to the input itself.
        affine: whether these layer norms have a gain and a bias, as in Transformer-XL.
        window: the most tokens that a token sees, itself among them; None for all. The published DEQs have 1000.
        injection: whether there is an input. Without one the cell starts from the embedded inputs, and attention has no
            bias at its end, as in Transformer-XL.
        normalisation: of the five weights of each block; the published DEQs have `"weight"`.
        initial_std: deviation of normal initial weights, in the published DEQs 0.01; None for PyTorch's own, which
            their code leaves to weight-normalised layers.
        blocks: how many in the cell, at least one.
        interleaved: whether rows of queries, keys and values are ordered by head first; see `RelativeAttention`.
        output_norm: whether attention has a layer norm before its output projection.
    """

    def __init__(
        self,
        d_model: int = 128,
        heads: int = 4,
        inner: int = 512,
        dropout: float = 0.0,
        *,
        attention_dropout: float = 0.0,
        norm_position: NormPosition = "post",
        affine: bool = False,
        window: int | None = None,
        injection: bool = True,
        normalisation: Normalisation = "none",
        initial_std: float | None = None,
        blocks: int = 1,
        interleaved: bool = False,
        output_norm: bool = False,
    ) -> None:
        super().__init__()
        layers(blocks=blocks)
        whole(1, window=window)
        probability(dropout=dropout, attention_dropout=attention_dropout)
        one_of(NormPosition, norm_position=norm_position)
        self.d_model, self.heads = d_model, heads
        self.dropout, self.attention_dropout, self.window = dropout, attention_dropout, window
        self.layers_per_application, self.injection, self.remembered = blocks, injection, 2 if injection else 1
        made = []
        for _ in range(blocks):
            attention = RelativeAttention(d_model, heads, injection, interleaved, output_norm, normalisation)
            feed_forward = FeedForward(d_model, inner, normalisation=normalisation)
            made.append(TransformerXLBlock(attention, feed_forward, norm_position == "pre", affine))
        self.inject = nn.Linear(d_model, 3 * d_model) if injection else None
        self.blocks = nn.ModuleList(made)
        if initial_std is not None:
            initialise_normal(self, initial_std)

    @property
    def cached(self) -> tuple[Entry, ...]:
        return ((self.heads, self.d_model // self.heads),) * (2 * len(self.blocks))

    @property
    def reach(self) -> int | None:
        return None if self.window is None else self.window - 1

    @property
    def separable(self) -> bool:
        return True

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> TransformerXLMap:
        place = place_of(past)
        states = past.states if isinstance(past, Memory) and place.past else ()
        around = self._surroundings(inputs_BLD, place, states)
        rooms = past.rooms() if isinstance(past, CacheView) else (None,) * len(self.blocks)
        tables = self._distance_tables(inputs_BLD, past)
        blocks = (
            self._bound(block, inputs_BLD, around, table, block.seen(states[0]) if states else room)
            for block, table, room in zip(self.typed_blocks(), tables, rooms, strict=True)
        )
        return TransformerXLMap(self, tuple(blocks), inputs_BLD)

    def _surroundings(self, inputs_BLD: Tensor, place: Place, states: tuple[Tensor, ...]) -> Surroundings:
        length = inputs_BLD.shape[1]
        visible = place.mask(length, inputs_BLD.device, self.window)
        if self.inject is None:
            return Surroundings(length, visible)
        memory_injection = None
        if states:
            keys_values = next(self.typed_blocks()).attention.keys_values
            memory_injection = F.linear(states[1], keys_values(used_weight(self.inject)), keys_values(self.inject.bias))
        return Surroundings(length, visible, self.inject(inputs_BLD), memory_injection)

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

    def _bound(
        self,
        block: TransformerXLBlock,
        inputs_BLD: Tensor,
        around: Surroundings,
        distances_HRE: Tensor,
        past: Tensor | KeysValues | None,
    ) -> BoundBlock:
        features = (self.d_model, block.feed_forward.contract.in_features, self.d_model)
        mixed, inner, fed = (self._mask(inputs_BLD, count) for count in features)
        B, L, _ = inputs_BLD.shape
        scores_BHLS = inputs_BLD.new_empty(()).expand(B, self.heads, L, distances_HRE.shape[1] - 1)
        probabilities = dropout_mask(scores_BHLS, self.attention_dropout, self.training)
        attention = block.attention.bind(around, distances_HRE, past, probabilities)
        return block.around(attention, block.feed_forward.bind(inner), mixed, fed)

    def _mask(self, inputs_BLD: Tensor, features: int) -> Tensor | None:
        batch, length = inputs_BLD.shape[:2]
        shape = torch.Size((batch, 1 if self.injection else length, features))
        return dropout_mask(inputs_BLD.new_empty(()).expand(shape), self.dropout, self.training)

    def typed_blocks(self) -> Iterator[TransformerXLBlock]:
        for block in self.blocks:
            assert isinstance(block, TransformerXLBlock)
            yield block


@dataclass(frozen=True, eq=False)
class TransformerXLMap(BlockMap[TransformerXLCell]):
    """The cell bound, with the embedded inputs to be remembered."""

    inputs_BLD: Tensor

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        for block in self.blocks:
            z_BLD = block(z_BLD)
        return z_BLD

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        """The states that the cell is applied to and, with injection, the embedded inputs, to be injected anew."""
        return (z_BLD, self.inputs_BLD) if self.cell.injection else (z_BLD,)

    def at(self, row: int, tokens_T: Tensor) -> TransformerXLMap:
        inputs_1TD = self.inputs_BLD[row : row + 1, tokens_T]
        return TransformerXLMap(self.cell, self.blocks_at(row, tokens_T), inputs_1TD)


def share_position_biases(cells: Sequence[TransformerXLCell]) -> None:
    """Gives all blocks the two biases of relative attention of the first: one parameter each, as in Transformer-XL's
    published PyTorch code (its TensorFlow code leaves the choice)."""
    first, *others = (block.attention for cell in cells for block in cell.typed_blocks())
    for attention in others:
        attention.content_bias, attention.distance_bias = first.content_bias, first.distance_bias


@torch.no_grad()
def initialise_normal(module: nn.Module, std: float) -> None:
    """Draw linear weights and the biases of relative attention from N(0, std²), gains of layer norms from N(1, std²);
    set other biases to 0. As published: `std` is 0.02 in Transformer-XL, 0.01 in the DEQ transformers. A weight
    normalised per output is what is drawn, one of spectral norm that over its largest singular value."""
    above(0, initial_std=std)
    for part in module.modules():
        match part:
            case nn.Linear():
                _assign(part, torch.empty_like(part.weight).normal_(0.0, std))
                _zero(part.bias)
            case nn.LayerNorm(elementwise_affine=True):
                part.weight.normal_(1.0, std)
                _zero(part.bias)
            case RelativeAttention():
                part.content_bias.normal_(0.0, std)
                part.distance_bias.normal_(0.0, std)


def _assign(layer: nn.Linear, weight: Tensor) -> None:
    if not parametrize.is_parametrized(layer, "weight"):
        layer.weight.copy_(weight)
        return
    layer.weight = weight
    # Spectral norm holds the singular vectors of the old weight; each reading in training is a step to the new ones.
    training = layer.training
    layer.train()
    for _ in range(_READINGS):
        _ = layer.weight
    layer.train(training)


def _zero(bias: nn.Parameter | None) -> None:
    if bias is not None:
        bias.zero_()
