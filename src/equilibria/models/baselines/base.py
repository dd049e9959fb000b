"""Every baseline is a stack of causal layers with a state, between an embedding and its softmax.

A layer takes a segment and the state the last segment left, and returns its output and its state: recurrent layers
keep their last hidden state, convolutions the inputs they still reach. So one model, one set of regularisers (those
of AWD-LSTM: Merity et al. 2017, arXiv:1708.02182) and one memory serve all families.
Shapes: B batch, L length, D features of a layer's input, H of its output, M remembered tokens or slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from equilibria.cells import Cache, Memory
from equilibria.models.base import Output, Step, TokenModel
from equilibria.nn import TokenEmbedding, dropout_mask, embedding_row_dropout, masked

State = tuple[Tensor, ...]


class Layer(nn.Module, ABC):
    """A causal layer `(B, L, d_in) → (B, L, d_out)` with a state.

    Attributes:
        d_in, d_out: features of input and output.
        state_shapes: `(M, features)` of each tensor of the state, without the batch.
    """

    d_in: int
    d_out: int
    state_shapes: tuple[tuple[int, int], ...]

    def start(self, x_BLD: Tensor) -> State:
        """The state before the first token: zeros."""
        return tuple(x_BLD.new_zeros(x_BLD.shape[0], *shape) for shape in self.state_shapes)

    @abstractmethod
    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """The output `(B, L, d_out)` and the state after the last token."""


@dataclass(frozen=True)
class Regularisation:
    """Dropouts and penalties around the layers, all off by default. A layer's own are arguments of the layer.

    Args:
        tokens: probability of dropping a token id, wherever it occurs in the batch (Gal and Ghahramani 2016,
            arXiv:1512.05287).
        inputs: of a feature of the embedded input; like the next two, one mask for all tokens of a row.
        hidden: of a feature between layers.
        output: of a feature of the last layer.
        activation: weight of the mean square of the dropped output (AR).
        slowness: weight of the mean square of the output's change from token to token (TAR).
    """

    tokens: float = 0.0
    inputs: float = 0.0
    hidden: float = 0.0
    output: float = 0.0
    activation: float = 0.0
    slowness: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, weight = getattr(self, field.name), field.name in ("activation", "slowness")
            if not value >= 0 or not (weight or value < 1):
                raise ValueError(f"{field.name} must be at least 0{'' if weight else ' and below 1'}, found {value}")


class SequenceModel(TokenModel):
    """Predict each next token with a stack of layers; called like a `LanguageModel`.

    Args:
        embedding: tokens in and out; it embeds to the first layer's width and reads the last layer's.
        layers: applied in order.
        regularisation: dropouts and penalties of training.
        memory_length: 0 starts every segment afresh, anything else hands on the whole state.

    Raises:
        ValueError: there is no layer, or the width of one is not that of the next.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        layers: Sequence[Layer],
        regularisation: Regularisation | None = None,
        memory_length: int = 1,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a sequence model needs at least 1 layer, found none")
        for number, (before, after) in enumerate(pairwise(layers)):
            if before.d_out != after.d_in:
                raise ValueError(f"layer {number} has {before.d_out} features out, layer {number + 1} {after.d_in} in")
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.regularisation = regularisation if regularisation is not None else Regularisation()
        self.memory_length = memory_length

    def forward(self, tokens_BL: Tensor, targets: Tensor | None = None, memory: Memory | None = None) -> Output:
        """One segment.

        Args:
            tokens_BL: token ids, `(B, L)` integers.
            targets: next tokens `(B, L)`; -100 where there is none.
            memory: what the segment before returned.

        Raises:
            ValueError: a token id outside the vocabulary, or a memory of another model.
        """
        self.check(tokens_BL)
        raw_BLH, states = self._read(self._embedded(tokens_BL), memory)
        hidden_BLH = self._dropped(raw_BLH, self.regularisation.output)
        loss = None
        if targets is not None:
            loss = self.embedding.loss(hidden_BLH.flatten(0, 1), targets.flatten())
        kept = None
        if self.memory_length:
            # Clones, so that a long segment is not kept alive by a view of its end.
            kept = Memory(tuple(part.detach().clone() for part in states))
        return Output(
            hidden=hidden_BLH,
            embedding=self.embedding,
            loss=loss,
            memory=kept,
            solution=None,
            penalty=self._penalty(raw_BLH, hidden_BLH),
        )

    @property
    def decodes(self) -> bool:
        """Always: a state is all that a layer needs of the past."""
        return True

    @torch.no_grad()
    def prefill(
        self,
        tokens_BL: Tensor,
        padding_B: Tensor | None = None,
        limit: int | None = None,
        chunk_length: int | None = None,
    ) -> Step:
        """Read a prompt; the cache is the layers' state, whatever the memory's length, so no limit bounds it.

        Raises:
            ValueError: a row has padding, which a state would not forget, or a token is none of the vocabulary's.
        """
        self._check_decoding(tokens_BL)
        if padding_B is not None and bool(padding_B.any()):
            raise ValueError("this model's state would take padding for text; give prompts of one length")
        return self._step(tokens_BL, None)

    @torch.no_grad()
    def decode(self, tokens_BL: Tensor, cache: Cache | Memory) -> Step:
        """Read further tokens; see `TokenModel.decode`."""
        tokens_BL = tokens_BL.unsqueeze(1) if tokens_BL.dim() == 1 else tokens_BL
        self._check_decoding(tokens_BL)
        if not isinstance(cache, Memory):
            raise ValueError("this model decodes from the state that its prefill returned")
        return self._step(tokens_BL, cache)

    def _step(self, tokens_BL: Tensor, memory: Memory | None) -> Step:
        hidden_BLH, states = self._read(self._embedded(tokens_BL), memory)
        return Step(hidden_BLH, self.embedding, Memory(states))

    def _read(self, x_BLD: Tensor, memory: Memory | None) -> tuple[Tensor, State]:
        """The last layer's output, and the states of all layers after the last token."""
        layers = cast("Sequence[Layer]", self.layers)
        before = Memory.split(memory, [len(layer.state_shapes) for layer in layers])
        states: list[Tensor] = []
        for number, (layer, part) in enumerate(zip(layers, before, strict=True)):
            x_BLD = self._dropped(x_BLD, self.regularisation.hidden) if number else x_BLD
            x_BLD, state = layer(x_BLD, layer.start(x_BLD) if part is None else part.states)
            states.extend(state)
        return x_BLD, tuple(states)

    def _embedded(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = embedding_row_dropout(
            self.embedding(tokens_BL),
            tokens_BL,
            self.embedding.vocabulary_size,
            self.regularisation.tokens,
            self.training,
        )
        return self._dropped(x_BLD, self.regularisation.inputs)

    def _dropped(self, x_BLD: Tensor, probability: float) -> Tensor:
        """`x` with features dropped, the same for all tokens of a row."""
        return masked(x_BLD, dropout_mask(x_BLD[:, :1], probability, self.training))

    def _penalty(self, raw_BLH: Tensor, hidden_BLH: Tensor) -> Tensor | None:
        activation, slowness = self.regularisation.activation, self.regularisation.slowness
        if not self.training or not (activation or slowness):
            return None
        penalty = activation * hidden_BLH.square().mean()
        if raw_BLH.shape[1] > 1:
            penalty = penalty + slowness * raw_BLH.diff(dim=1).square().mean()
        return penalty
