"""What all models that read a text from segment to segment do around their layers: embed, regularise, score.

tokens → embedding, dropped → states → dropped → loss, penalties
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from equilibria.cells import Cache, Memory
from equilibria.depths import Depth
from equilibria.models.base import Output, TokenModel, check_shape
from equilibria.models.regularisation import Regularisation, row_mask
from equilibria.nn import TokenEmbedding, masked
from equilibria.ranges import whole
from equilibria.solvers import Solution


@dataclass(frozen=True)
class Read:
    """What the layers of a model make of a segment.

    Attributes:
        hidden_BLD: the final states.
        memory: for the next segment, None where nothing is kept.
        solution: the solve, None for explicit models.
        penalty: to be added to the loss in training, None for nothing.
        states: in training, states on the way that are to predict the targets too.
    """

    hidden_BLD: Tensor
    memory: Memory | Cache | None
    solution: Solution | None = None
    penalty: Tensor | None = None
    states: tuple[Tensor, ...] = ()


class CausalModel(TokenModel):
    """Predict each next token from those before it, in this segment and, through a memory, in earlier ones.

    Args:
        embedding: tokens in and out.
        memory_length: how much a segment hands to the next unless a call says otherwise; 0 for nothing.
        regularisation: dropouts and penalties of training; none when None.

    Attributes:
        auxiliary_weight: weight of the mean loss of the states on the way.
    """

    auxiliary_weight: float = 0.0

    def __init__(self, embedding: TokenEmbedding, memory_length: int, regularisation: Regularisation | None) -> None:
        super().__init__()
        whole(0, memory_length=memory_length)
        self.embedding, self.memory_length = embedding, memory_length
        self.regularisation = regularisation if regularisation is not None else Regularisation()

    def forward(
        self,
        tokens_BL: Tensor,
        targets: Tensor | None = None,
        memory: Memory | Cache | None = None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Output:
        """One segment; see `TokenModel.forward`. An `Adaptive` depth returns a cache as memory, which is used up."""
        read = self.read(self.embedded(tokens_BL), memory, depth=depth, memory_length=memory_length)
        mask_B1D = row_mask(read.hidden_BLD, self.regularisation.output_dropout, self.training)
        hidden_BLD, loss = masked(read.hidden_BLD, mask_B1D), None
        penalties = [read.penalty]
        if self.training:
            penalties.append(self.regularisation.penalty(read.hidden_BLD, hidden_BLD))
        if targets is not None:
            loss = self.loss(hidden_BLD, targets)
            if self.auxiliary_weight and read.states:
                losses = torch.stack([self.loss(masked(state, mask_B1D), targets) for state in read.states])
                penalties.append(self.auxiliary_weight * losses.mean())
        there = [penalty for penalty in penalties if penalty is not None]
        penalty = sum(there[1:], there[0]) if there else None
        return Output(hidden_BLD, self.embedding, loss, read.memory, read.solution, penalty)

    def embedded(self, tokens_BL: Tensor) -> Tensor:
        """The embedded tokens, `(B, L) → (B, L, D)`, in training with some of them and of their features dropped.
        Features in their place, `(B, L, D)`, are not embedded.

        Raises:
            ValueError: tokens of another shape, an id outside the vocabulary, or features of which some tokens are to
                be dropped.
        """
        check_shape(tokens_BL)
        if tokens_BL.is_floating_point():
            if tokens_BL.shape[2] != self.embedding.d_model:
                raise ValueError(
                    f"features of embedded tokens must be (batch, length, {self.embedding.d_model}), found shape "
                    f"{tuple(tokens_BL.shape)}"
                )
            return self.regularisation.featured(tokens_BL, self.training)
        self.check(tokens_BL)
        return self.regularisation.embedded(
            self.embedding(tokens_BL), tokens_BL, self.embedding.vocabulary_size, self.training
        )

    @abstractmethod
    def read(
        self,
        x_BLD: Tensor,
        memory: Memory | Cache | None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Read:
        """What the layers make of embedded tokens; the arguments are those of `forward`."""

    @staticmethod
    def _check_widths(embedding: TokenEmbedding, *parts: tuple[str, int, int]) -> None:
        """Raises ValueError unless each part, `(name, features in, features out)`, reads what comes before it."""
        last = "the softmax", embedding.d_output, 0
        for (before, _, given), (name, read, _) in pairwise([("the embedding", 0, embedding.d_model), *parts, last]):
            if given != read:
                raise ValueError(f"{before} has {given} features out and {name} reads {read}; they must agree")

    def _length(self, memory_length: int | None) -> int:
        whole(0, memory_length=memory_length)
        return self.memory_length if memory_length is None else memory_length
