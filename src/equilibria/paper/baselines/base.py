"""Every baseline is a stack of causal layers with a state, between an embedding and its softmax.

A layer takes a segment and the state the last segment left, and returns its output and its state: recurrent layers
keep their last hidden state, convolutions the inputs they still reach. So one model and one memory serve all families.
Shapes: B batch, L length, D features of a layer's input, H of its output, M remembered tokens or slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from equilibria.cells import Cache, Memory
from equilibria.depths import Depth
from equilibria.models.causal import CausalModel, Read
from equilibria.models.decoding import Step
from equilibria.models.regularisation import Regularisation, row_mask
from equilibria.nn import TokenEmbedding, masked
from equilibria.ranges import probability, whole

State = tuple[Tensor, ...]


class Layer(nn.Module, ABC):
    """A causal layer `(B, L, d_in) → (B, L, d_out)` with a state.

    Args:
        d_in, d_out: features of input and output.
        state_shapes: `(M, features)` of each tensor of the state, without the batch.
    """

    def __init__(self, d_in: int, d_out: int, *state_shapes: tuple[int, int]) -> None:
        super().__init__()
        whole(1, d_in=d_in, d_out=d_out)
        self.d_in, self.d_out, self.state_shapes = d_in, d_out, state_shapes

    def start(self, x_BLD: Tensor) -> State:
        """The state before the first token: zeros."""
        return tuple(x_BLD.new_zeros(x_BLD.shape[0], *shape) for shape in self.state_shapes)

    @abstractmethod
    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """The output `(B, L, d_out)` and the state after the last token."""


class SequenceModel(CausalModel):
    """Predict each next token with a stack of layers; called like a `LanguageModel`.

    Args:
        embedding: tokens in and out; it embeds to the first layer's width and reads the last layer's.
        layers: applied in order.
        regularisation: of training, around the layers.
        memory_length: 0 starts every segment afresh, anything else hands on the whole state.
        hidden_dropout: probability of dropping a feature between layers, one mask for all tokens of a row.

    Raises:
        ValueError: there is no layer, one does not read as many features as the one before it has, or a number is out
            of its range.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        layers: Sequence[Layer],
        regularisation: Regularisation | None = None,
        memory_length: int = 1,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__(embedding, memory_length, regularisation)
        if not layers:
            raise ValueError("a sequence model needs at least 1 layer, found none")
        self._check_widths(embedding, *[(f"layer {n}", layer.d_in, layer.d_out) for n, layer in enumerate(layers)])
        probability(hidden_dropout=hidden_dropout)
        self.layers = nn.ModuleList(layers)
        self.hidden_dropout = hidden_dropout

    def read(
        self,
        x_BLD: Tensor,
        memory: Memory | Cache | None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Read:
        self._check_depthless(depth)
        hidden_BLH, states = self._states(x_BLD, memory)
        # Clones, so that a long segment is not kept alive by a view of its end.
        kept = Memory(tuple(part.detach().clone() for part in states)) if self._length(memory_length) else None
        return Read(hidden_BLH, kept)

    def decodes(self, depth: Depth | None = None) -> bool:
        """Always: a layer needs nothing of the past but its state."""
        self._check_depthless(depth)
        return True

    @torch.no_grad()
    def prefill(
        self,
        tokens_BL: Tensor,
        padding_B: Tensor | None = None,
        limit: int | None = None,
        chunk_length: int | None = None,
        *,
        depth: Depth | None = None,
    ) -> Step:
        """Read a prompt without padding; the cache is the layers' state, which no limit bounds."""
        self._check_decoding(tokens_BL, depth)
        if padding_B is not None and bool(padding_B.any()):
            raise ValueError("this model's state would take padding for text; give prompts of one length")
        return self._step(tokens_BL, None)

    @torch.no_grad()
    def decode(self, tokens_BL: Tensor, cache: Cache | Memory, *, depth: Depth | None = None) -> Step:
        tokens_BL = tokens_BL.unsqueeze(1) if tokens_BL.dim() == 1 else tokens_BL
        self._check_decoding(tokens_BL, depth)
        if not isinstance(cache, Memory):
            raise ValueError("this model decodes from the state that its prefill returned")
        return self._step(tokens_BL, cache)

    def _step(self, tokens_BL: Tensor, memory: Memory | None) -> Step:
        hidden_BLH, states = self._states(self.embedded(tokens_BL), memory)
        return Step(hidden_BLH, self.embedding, Memory(states))

    def _states(self, x_BLD: Tensor, memory: Memory | Cache | None) -> tuple[Tensor, State]:
        if isinstance(memory, Cache):
            raise ValueError("this model goes on from a memory, not from another model's cache")
        layers = cast("Sequence[Layer]", self.layers)
        if memory is not None:
            memory.check(len(x_BLD))
        before = Memory.split(memory, [len(layer.state_shapes) for layer in layers])
        states: list[Tensor] = []
        precision = x_BLD.dtype  # of every state: autocast lowers what some layers return, and a run may go on without
        for number, (layer, part) in enumerate(zip(layers, before, strict=True)):
            if number:
                x_BLD = masked(x_BLD, row_mask(x_BLD, self.hidden_dropout, self.training))
            x_BLD, state = layer(x_BLD, layer.start(x_BLD) if part is None else part.states)
            x_BLD = x_BLD.to(precision)
            states.extend(part.to(precision) for part in state)
        return x_BLD, tuple(states)
