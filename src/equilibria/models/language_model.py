"""A language model: embedding, a cell at a depth, and a softmax tied to the embedding.

The cell's context is computed once per call, before the depth is reached; the depth sees a map of the state alone.
Shapes: B batch, L length, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.cells import Cell, Memory
from equilibria.depths import Depth, Equilibrium
from equilibria.models.sampling import Sampling
from equilibria.nn import dropout_mask, masked
from equilibria.solvers import Solution

IGNORED = -100
"""The target of a position that has none."""


@dataclass(frozen=True)
class Output:
    """What a language model returns.

    Attributes:
        hidden: final states `(B, L, D)`.
        embedding: the tied softmax `(V, D)`.
        loss: mean negative log-likelihood in nats over the targets, None without targets.
        memory: pass it to the next segment; None where the model keeps none.
        solution: the solve and its statistics, None for explicit depths.
        penalty: what the depth asks to be added to the loss in training, None where that is nothing.
    """

    hidden: Tensor
    embedding: Tensor
    loss: Tensor | None
    memory: Memory | None
    solution: Solution | None
    penalty: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """`(B, L, V)`, computed when first asked for."""
        return F.linear(self.hidden, self.embedding)


class LanguageModel(nn.Module):
    """Predict each next token from those before it, at a depth of one's choice.

    Args:
        vocabulary_size: number of token ids.
        cell: the map that is applied.
        depth: how often; an equilibrium when None.
        memory_length: tokens of earlier segments that are attended to.
        dropout: probability of dropping a feature of the embedding.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: Cell,
        depth: Depth | None = None,
        memory_length: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if vocabulary_size < 1 or memory_length < 0:
            raise ValueError(
                f"vocabulary_size must be at least 1 and memory_length at least 0, "
                f"found {vocabulary_size} and {memory_length}"
            )
        self.embedding = nn.Embedding(vocabulary_size, cell.d_model)
        nn.init.normal_(self.embedding.weight, std=cell.d_model**-0.5)
        self.cell = cell
        self.depth: Depth = depth if depth is not None else Equilibrium()
        self.memory_length = memory_length
        self.dropout = dropout

    def forward(self, tokens_BL: Tensor, targets: Tensor | None = None, memory: Memory | None = None) -> Output:
        """One segment.

        Args:
            tokens_BL: token ids, `(B, L)` integers.
            targets: next tokens `(B, L)`; -100 where there is none.
            memory: what the segment before returned.

        Raises:
            ValueError: a token id outside the vocabulary.
        """
        self._check(tokens_BL)
        inputs_BLD = self.embedding(tokens_BL) * self.cell.d_model**0.5
        inputs_BLD = masked(inputs_BLD, dropout_mask(inputs_BLD, self.dropout, self.training))
        context = self.cell.context(inputs_BLD, memory)
        start = self.cell.initial_state(inputs_BLD)
        reached = self.depth.reach(lambda z: self.cell(z, context), start, self.training)
        loss = None
        if targets is not None:
            logits = F.linear(reached.state, self.embedding.weight)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        kept = None
        if self.memory_length:
            with torch.no_grad():
                kept = Memory.join(memory, self.cell.remember(reached.state, context), self.memory_length)
        return Output(reached.state, self.embedding.weight, loss, kept, reached.solution, reached.penalty)

    @torch.no_grad()
    def generate(
        self,
        tokens_BL: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        window: int = 256,
        on_token: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Continue `tokens_BL` `(B, L ≥ 1)` by sampling; returns prompt and continuation `(B, L + max_new_tokens)`.

        Args:
            max_new_tokens: tokens to add.
            temperature: 0 takes the most likely token.
            top_k: draw from so many tokens at most.
            top_p: draw from the smallest set with this probability.
            seed: makes the draw repeatable.
            window: last tokens that each prediction sees; every prediction solves them afresh.
            on_token: called with each new token `(B,)`, for streaming.
        """
        if tokens_BL.dim() != 2 or tokens_BL.shape[1] < 1:
            raise ValueError(f"tokens must be (batch, length >= 1), found shape {tuple(tokens_BL.shape)}")
        sampling = Sampling(temperature, top_k, top_p)
        generator = None
        if seed is not None:
            generator = torch.Generator(device=tokens_BL.device).manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            for _ in range(max_new_tokens):
                output = self(tokens_BL[:, -window:])
                token_B = sampling.draw(F.linear(output.hidden[:, -1], output.embedding), generator)
                tokens_BL = torch.cat([tokens_BL, token_B.unsqueeze(1)], dim=1)
                if on_token is not None:
                    on_token(token_B)
        finally:
            self.train(was_training)
        return tokens_BL

    def _check(self, tokens_BL: Tensor) -> None:
        if tokens_BL.device.type != "cpu" or not tokens_BL.numel():
            return  # on an accelerator the look-up itself asserts, without a synchronisation here
        least, most = (int(bound) for bound in tokens_BL.aminmax())
        if least < 0 or most >= self.embedding.num_embeddings:
            raise ValueError(
                f"token id {least if least < 0 else most} is outside the vocabulary of "
                f"{self.embedding.num_embeddings}; was the text encoded with this model's tokenizer?"
            )
