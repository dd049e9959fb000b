"""Tokens in and out that share nothing: for few classes, or for models whose inputs and outputs differ in width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.cross_entropy import IGNORED


class UntiedEmbedding(nn.Module):
    """A row of features per token, and a linear output layer of its own, with biases.

    Args:
        vocabulary_size: number of token ids, and of classes.
        d_model: features of an embedded token.
        d_output: features that the output layer reads; `d_model` when None.
    """

    def __init__(self, vocabulary_size: int, d_model: int, d_output: int | None = None) -> None:
        super().__init__()
        d_output = d_model if d_output is None else d_output
        if min(vocabulary_size, d_model, d_output) < 1:
            raise ValueError(
                f"vocabulary_size, d_model and d_output must be at least 1, "
                f"found {vocabulary_size}, {d_model} and {d_output}"
            )
        self.rows = nn.Embedding(vocabulary_size, d_model)
        nn.init.normal_(self.rows.weight, std=d_model**-0.5)
        self.output = nn.Linear(d_output, vocabulary_size)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self.rows.num_embeddings

    @property
    def d_model(self) -> int:
        """Features of an embedded token."""
        return self.rows.embedding_dim

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """The features of tokens, `(B, L) → (B, L, d_model)`."""
        return self.rows(tokens_BL)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, `(…, d_output) → (…, V)`."""
        return self.output(hidden)

    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The mean negative log-likelihood, in nats, over the targets that are not -100."""
        return F.cross_entropy(self.logits(hidden_ND), targets_N, ignore_index=IGNORED)
