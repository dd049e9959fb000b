"""Tokens in and out that share nothing: for few classes, or for models whose inputs and outputs differ in width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.adaptive import clustered_loss
from equilibria.nn.cross_entropy import IGNORED, chunked_cross_entropy
from equilibria.nn.embedding import TokenEmbedding
from equilibria.ranges import at_least

_SHRINKAGE = 4  # published: each cluster has a fourth of the features of the one before


class UntiedEmbedding(TokenEmbedding):
    """A row of features per token, and an output layer of its own: linear with biases, or PyTorch's adaptive softmax
    (Grave et al. 2016, arXiv:1609.04309), whose clusters have a fourth of the features of the one before.

    Args:
        vocabulary_size: number of token ids, and of classes.
        d_model: features of an embedded token.
        d_output: features that the output layer reads; `d_model` when None.
        d_embed: features of a row, projected to `d_model`; `d_model`, without a projection, when None.
        cutoffs: first token of each cluster but the first, rising, where token ids fall in frequency; none for a plain
            softmax.
    """

    def __init__(
        self,
        vocabulary_size: int,
        d_model: int,
        d_output: int | None = None,
        d_embed: int | None = None,
        cutoffs: Sequence[int] = (),
    ) -> None:
        super().__init__()
        d_output = d_model if d_output is None else d_output
        at_least(1, vocabulary_size=vocabulary_size, d_model=d_model, d_output=d_output, d_embed=d_embed)
        edges = (0, *cutoffs, vocabulary_size)
        if any(left >= right for left, right in pairwise(edges)):
            raise ValueError(f"cutoffs must rise between 0 and vocabulary_size {vocabulary_size}, found {cutoffs}")
        if d_output < _SHRINKAGE ** len(cutoffs):
            raise ValueError(
                f"d_output must be at least {_SHRINKAGE}**{len(cutoffs)} for {len(cutoffs)} cutoffs, found {d_output}"
            )
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.rows = nn.Embedding(vocabulary_size, d_model if d_embed is None else d_embed)
        nn.init.normal_(self.rows.weight, std=self.rows.embedding_dim**-0.5)
        self.project = nn.Identity() if d_embed is None else nn.Linear(d_embed, d_model)
        self.edges = edges
        self.output = (
            nn.AdaptiveLogSoftmaxWithLoss(d_output, vocabulary_size, list(cutoffs), div_value=float(_SHRINKAGE))
            if cutoffs
            else nn.Linear(d_output, vocabulary_size)
        )

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """The features of tokens, `(B, L) → (B, L, d_model)`."""
        rows_BLE = self.rows(tokens_BL)
        return self.project(rows_BLE).to(rows_BLE.dtype)  # autocast lowers the product alone, and not what is solved

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, normalised where the softmax is adaptive, `(…, d_output) → (…, V)`."""
        if isinstance(self.output, nn.Linear):
            return self.output(hidden)
        return self.output.log_prob(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The mean negative log-likelihood, in nats, over the targets that are not -100."""
        if isinstance(self.output, nn.Linear):
            return F.cross_entropy(self.output(hidden_ND), targets_N, ignore_index=IGNORED)
        # PyTorch's own loss knows no ignored targets, and leaves out clusters that have none.
        return clustered_loss(self.edges, targets_N, partial(_cluster_loss, self.output, hidden_ND))


def _cluster_loss(
    output: nn.AdaptiveLogSoftmaxWithLoss, hidden_ND: Tensor, cluster: int, targets_N: Tensor, rows: Tensor | None
) -> Tensor:
    if rows is None:
        return chunked_cross_entropy(hidden_ND, output.head.weight, targets_N, reduction="sum")
    project, scores = output.tail[cluster - 1]  # pyright: ignore[reportGeneralTypeIssues]
    return chunked_cross_entropy(project(hidden_ND[rows]), scores.weight, targets_N, reduction="sum")
