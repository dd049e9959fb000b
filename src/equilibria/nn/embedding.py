"""Where tokens become features and features tokens: one module owns what both ways share."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.ranges import whole

IGNORED = -100
"""The target of a position that has none."""

_SCORES = {"cpu": 2**23}
_SCORES_ELSEWHERE = 2**27
"""Scores in a chunk: what fits the caches of a CPU; what keeps the matrix products of an accelerator large."""
# From this many tokens on the scores of a batch outgrow everything else, and a chunked loss is faster too
# (docs/lab-notes.md).
_LARGE = 20_000


class TokenEmbedding(nn.Module, ABC):
    """What a language model needs of its embedding. `N` positions, `D = d_output`, `V = vocabulary_size`.

    Attributes:
        vocabulary_size: number of token ids.
        d_model: features of an embedded token.
    """

    vocabulary_size: int
    d_model: int

    @property
    def d_output(self) -> int:
        """Features that the softmax reads: `d_model`, unless one of your own differs."""
        return self.d_model

    @abstractmethod
    def forward(self, tokens_BL: Tensor, /) -> Tensor:
        """The features of tokens, `(B, L) → (B, L, d_model)`."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, `(…, D) → (…, V)`, whose softmax is the prediction."""

    @abstractmethod
    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The mean negative log-likelihood, in nats, over the targets that are not -100."""


class TiedEmbedding(nn.Embedding, TokenEmbedding):
    """A row of features per token; the same matrix is the softmax's (Press and Wolf 2016, arXiv:1608.05859).

    Rows start normal with variance `1 / d_model`, so that scores of normalised features start near one in size.
    """

    def __init__(self, vocabulary_size: int, d_model: int) -> None:
        whole(1, vocabulary_size=vocabulary_size, d_model=d_model)
        super().__init__(vocabulary_size, d_model)
        self.vocabulary_size, self.d_model = vocabulary_size, d_model

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """For a large vocabulary it is computed in chunks, which allows one derivative; see `chunked_cross_entropy`."""
        if self.num_embeddings >= _LARGE:
            return chunked_cross_entropy(hidden_ND, self.weight, targets_N)
        return F.cross_entropy(self.logits(hidden_ND), targets_N, ignore_index=IGNORED)


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """`cross_entropy(linear(hidden, weight, bias), targets)` in nats, over a few tokens at a time: the `(N, V)` scores
    never exist at once. PyTorch computes the gradients while it has the scores of a chunk, so nothing is recomputed.

    The mean is that over the targets that are not -100, NaN without any. The sum is taken in float32 at least, under
    autocast too. It can be differentiated once, and backwards: a derivative of its gradient, or one in forward mode,
    needs the plain formula.
    """
    precision = torch.promote_types(weight_VD.dtype, torch.float32)
    tokens = _SCORES.get(hidden_ND.device.type, _SCORES_ELSEWHERE) // len(weight_VD)
    options = nn.LinearCrossEntropyOptions(
        batch_chunk_size=max(1, tokens), acc_policy="compact", allow_retain_graph=True
    )
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return F.linear_cross_entropy(
            hidden_ND.to(precision),
            weight_VD.to(precision),
            targets_N,
            linear_bias=None if bias_V is None else bias_V.to(precision),
            reduction=reduction,
            ignore_index=IGNORED,
            options=options,
        )
