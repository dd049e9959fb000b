"""What every model of token sequences is, whatever lies between its embedding and its softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from equilibria.cells import Memory
from equilibria.models.sampling import Sampling
from equilibria.nn import TokenEmbedding
from equilibria.solvers import Solution


@dataclass(frozen=True)
class Output:
    """What a language model returns.

    Attributes:
        hidden: final states `(B, L, D)`.
        embedding: turns them into logits.
        loss: mean negative log-likelihood in nats over the targets, None without targets.
        memory: pass it to the next segment; None where the model keeps none.
        solution: the solve and its statistics, a `ChunkedSolution` where there were several; None for explicit depths.
        penalty: what is to be added to the loss in training, None where that is nothing.
    """

    hidden: Tensor
    embedding: TokenEmbedding
    loss: Tensor | None
    memory: Memory | None
    solution: Solution | None
    penalty: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """`(B, L, V)`, computed when first asked for; their softmax is the prediction."""
        return self.embedding.logits(self.hidden)


class TokenModel(nn.Module, ABC):
    """Predict each next token from those before it.

    Attributes:
        embedding: of the tokens, and their softmax.
        memory_length: how much a segment hands to the next; 0 for nothing.
    """

    embedding: TokenEmbedding
    memory_length: int

    @abstractmethod
    def forward(self, tokens_BL: Tensor, targets: Tensor | None = None, memory: Memory | None = None) -> Output:
        """One segment.

        Args:
            tokens_BL: token ids, `(B, L)` integers.
            targets: next tokens `(B, L)`; -100 where there is none.
            memory: what the segment before returned.

        Raises:
            ValueError: a token id outside the vocabulary, or a memory of another model.
        """

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
        sampling, prompt_BP = Sampling(temperature, top_k, top_p), tokens_BL
        generator = None
        if seed is not None:
            generator = torch.Generator(device=tokens_BL.device).manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            for _ in range(max_new_tokens):
                hidden_BD = self.next_hidden(prompt_BP, tokens_BL[:, prompt_BP.shape[1] :], window)
                token_B = sampling.draw(self.embedding.logits(hidden_BD), generator)
                tokens_BL = torch.cat([tokens_BL, token_B.unsqueeze(1)], dim=1)
                if on_token is not None:
                    on_token(token_B)
        finally:
            self.train(was_training)
        return tokens_BL

    def next_hidden(self, prompt_BP: Tensor, written_BL: Tensor, window: int) -> Tensor:
        """The state `(B, D)` that predicts the token after those written so far."""
        return self(torch.cat([prompt_BP, written_BL], dim=1)[:, -window:]).hidden[:, -1]

    def loss(self, hidden_BLD: Tensor, targets_BL: Tensor) -> Tensor:
        """The mean negative log-likelihood of the targets, in nats, given final states."""
        return self.embedding.loss(hidden_BLD.flatten(0, 1), targets_BL.flatten())

    def check(self, tokens_BL: Tensor) -> None:
        """Raises ValueError for a token id outside the vocabulary."""
        if torch.compiler.is_compiling():
            return  # a program cannot depend on its data
        if tokens_BL.device.type != "cpu" or not tokens_BL.numel():
            return  # on an accelerator the look-up itself asserts, without a synchronisation here
        least, most = (int(bound) for bound in tokens_BL.aminmax())
        if least < 0 or most >= self.embedding.vocabulary_size:
            raise ValueError(
                f"token id {least if least < 0 else most} is outside the vocabulary of "
                f"{self.embedding.vocabulary_size}; was the text encoded with this model's tokenizer?"
            )
