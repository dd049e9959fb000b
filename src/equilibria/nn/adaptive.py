"""Embeddings with adaptive softmax: with shared weights, as in Transformer-XL (Dai et al. 2019, arXiv:1901.02860), or
with input and output layers that share nothing.

The shared embedding is that of Baevski and Auli (2018, arXiv:1809.10853), the softmax that of Grave et al. (2016,
arXiv:1609.04309). Tokens are numbered by falling frequency and cut into clusters `0 … K`; the rarer, the fewer
features.

embedding of token t in cluster i:   P_i E_i[t]
log p(t) for i = 0:                  log softmax(E_0 Q_0ᵀh + b_0)[t]
log p(t) for i > 0:                  log softmax(E_0 Q_0ᵀh + b_0)[n_0 + i − 1] + log softmax(E_i Q_iᵀh + b_i)[t]

`E_0` holds the `n_0` most frequent tokens and, after them, a row for each other cluster, in their order (published
checkpoints have these in reverse). `Q_i` is `P_i`: one parameter, not two that share storage.
`torch.nn.AdaptiveLogSoftmaxWithLoss` can share neither and has no `b_i`. Shapes: B batch, L length, N positions,
D features, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.embedding import IGNORED, TokenEmbedding, chunked_cross_entropy
from equilibria.ranges import whole

_SHRINKAGE = 4  # published: each cluster has a fourth of the features of the one before


class AdaptiveEmbedding(TokenEmbedding):
    """Features of tokens, and the log-probabilities of tokens given features, with fewer features for rarer tokens.

    Args:
        vocabulary_size: number of token ids, which fall in frequency.
        d_model: features.
        cutoffs: first token of each cluster but the first, rising; none for a plain softmax with a bias.
        div_val: cluster `i` has `d_embed // div_val**i` features and a projection; none has one if all have `d_model`.
        untied_projections: how many clusters, counted from the first, have a projection of their own in the softmax;
            1 in Transformer-XL.
        initialisation: `"scaled"` starts with features of variance `1 / d_model` and scores of variance 1 for features
            of variance 1; `"published"` is Transformer-XL's: standard deviation 0.02, of projections 0.01.
        d_embed: features of the first cluster; `d_model` when None.
        tied_tables: whether the softmax shares the embedding's tables.
    """

    def __init__(
        self,
        vocabulary_size: int,
        d_model: int,
        cutoffs: Sequence[int] = (),
        div_val: int = 1,
        untied_projections: int = 1,
        initialisation: Literal["scaled", "published"] = "scaled",
        d_embed: int | None = None,
        tied_tables: bool = True,
    ) -> None:
        super().__init__()
        d_embed = d_model if d_embed is None else d_embed
        edges = cluster_edges(vocabulary_size, cutoffs)
        whole(1, vocabulary_size=vocabulary_size, d_model=d_model, d_embed=d_embed, div_val=div_val)
        if d_embed // div_val ** len(cutoffs) < 1:
            raise ValueError(
                f"d_embed // div_val**{len(cutoffs)}, the features of the last cluster, must be at least 1; "
                f"found d_embed {d_embed} and div_val {div_val}"
            )
        if not 0 <= untied_projections <= len(cutoffs) + 1:
            raise ValueError(f"untied_projections must be 0 to {len(cutoffs) + 1}, found {untied_projections}")
        self.vocabulary_size, self.d_model, self.edges = vocabulary_size, d_model, edges
        self.initialisation = initialisation
        tokens = [right - left for left, right in pairwise(edges)]
        sizes = [tokens[0] + len(cutoffs), *tokens[1:]]
        widths = [d_embed // div_val**cluster for cluster in range(len(sizes))]
        self.tables = _tables(sizes if tied_tables else tokens, widths)
        self.own_tables = _tables([] if tied_tables else sizes, widths)
        self.biases = nn.ParameterList(torch.empty(size) for size in sizes)
        projected = () if div_val == 1 and d_embed == d_model else widths
        self.projections = nn.ParameterList(torch.empty(d_model, width) for width in projected)
        self.own_projections = nn.ParameterList(torch.empty(d_model, width) for width in projected[:untied_projections])
        self.reset_parameters()

    @property
    def weights(self) -> list[Tensor]:
        """The softmax's matrix of each cluster: its tokens' rows, and in the first one more per other cluster."""
        return _weights(self.own_tables) or _weights(self.tables)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew; biases start at 0."""
        scaled = self.initialisation == "scaled"
        for table in (*_weights(self.tables), *_weights(self.own_tables)):
            nn.init.normal_(table, std=table.shape[1] ** -0.5 if scaled else 0.02)
        for projection in (*self.projections, *self.own_projections):
            nn.init.normal_(projection, std=self.d_model**-0.5 if scaled else 0.01)
        for bias in self.biases:
            nn.init.zeros_(bias)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        cluster_BL = _cluster(self.edges, tokens_BL)
        parts = []
        for cluster, (first, table) in enumerate(zip(self.edges, _weights(self.tables), strict=False)):
            # Every cluster looks up every token, with zeros where it is another's, so that the matrix product has the
            # same shape, and rounds the same way, whatever the tokens are.
            inside_BL = cluster_BL == cluster
            parts.append(F.embedding((tokens_BL - first) * inside_BL, table) * inside_BL.unsqueeze(-1))
        if not self.projections:
            return sum(parts[1:], parts[0])
        projected_BLD = F.linear(torch.cat(parts, dim=-1), torch.cat(list(self.projections), dim=1))
        return projected_BLD.to(parts[0].dtype)  # autocast lowers only the product, not what is solved

    def logits(self, hidden: Tensor) -> Tensor:
        """Normalised log-probabilities of every token, `(…, D) → (…, V)`."""
        shortlist = self.edges[1]
        head, *tails = (
            F.linear(self._projected(hidden, cluster), table, bias).log_softmax(-1)
            for cluster, (table, bias) in enumerate(zip(self.weights, self.biases, strict=True))
        )
        clusters = zip(head[..., shortlist:].unbind(-1), tails, strict=True)
        return torch.cat([head[..., :shortlist], *(cluster.unsqueeze(-1) + tail for cluster, tail in clusters)], dim=-1)

    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return clustered_loss(self.edges, targets_N, partial(self._cluster_loss, hidden_ND))

    def _cluster_loss(self, hidden_ND: Tensor, cluster: int, targets_N: Tensor, rows: Tensor | None) -> Tensor:
        weight, bias = self.weights[cluster], self.biases[cluster]
        hidden_ND = hidden_ND if rows is None else hidden_ND[rows]
        return chunked_cross_entropy(self._projected(hidden_ND, cluster), weight, targets_N, bias, reduction="sum")

    def _projected(self, hidden: Tensor, cluster: int) -> Tensor:
        """`Qᵀ h` of a cluster, or `h` where there are no projections."""
        if not self.projections:
            return hidden
        owned = cluster < len(self.own_projections)
        return hidden @ (self.own_projections if owned else self.projections)[cluster]


def cluster_edges(vocabulary_size: int, cutoffs: Sequence[int]) -> tuple[int, ...]:
    """0, the first token of each other cluster, and the number of tokens; raises ValueError unless they rise."""
    edges = (0, *cutoffs, vocabulary_size)
    if any(left >= right for left, right in pairwise(edges)):
        raise ValueError(f"cutoffs must rise between 0 and vocabulary_size {vocabulary_size}, found {cutoffs}")
    return edges


def _tables(sizes: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=False))


def _weights(tables: nn.ModuleList) -> list[Tensor]:
    return [table.weight for table in tables if isinstance(table, nn.Embedding)]


ClusterLoss = Callable[[int, Tensor, Tensor | None], Tensor]
"""The summed loss of a cluster: its number, its targets counted from its first, and their positions; None for all."""


def clustered_loss(edges: Sequence[int], targets_N: Tensor, cluster_loss: ClusterLoss) -> Tensor:
    """The mean loss over targets that are not -100 of an adaptive softmax; NaN without any.

    A cluster without targets is asked too: every parameter has a gradient in every step. In the first cluster, each
    other cluster has an id of its own after the tokens.
    """
    cluster_N = _cluster(edges, targets_N)
    total = cluster_loss(0, torch.where(cluster_N == 0, targets_N, edges[1] - 1 + cluster_N), None)
    for cluster in range(1, len(edges) - 1):
        rows = (cluster_N == cluster).nonzero().squeeze(1)
        total = total + cluster_loss(cluster, targets_N[rows] - edges[cluster], rows)
    return total / (targets_N != IGNORED).sum()


def _cluster(edges: Sequence[int], tokens: Tensor) -> Tensor:
    """The cluster of each token, 0 for ids below the vocabulary and the last for those beyond."""
    return sum((tokens >= cutoff for cutoff in edges[1:-1]), torch.zeros_like(tokens))


class UntiedEmbedding(TokenEmbedding):
    """A row of features per token, and an output layer of its own: linear with biases, or PyTorch's adaptive softmax
    (Grave et al. 2016, arXiv:1609.04309), whose clusters have a fourth of the features of the one before.

    Args:
        vocabulary_size: number of token ids, and of classes.
        d_model: features of an embedded token.
        d_output: features that the output layer reads; `d_model` when None.
        d_embed: features of a row, projected to `d_model`; `d_model`, without a projection, when None.
        cutoffs: first token of each cluster but the first, rising; token ids fall in frequency. None for a plain
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
        whole(1, vocabulary_size=vocabulary_size, d_model=d_model, d_output=d_output, d_embed=d_embed)
        self.edges = cluster_edges(vocabulary_size, cutoffs)
        if d_output < _SHRINKAGE ** len(cutoffs):
            raise ValueError(
                f"d_output must be at least {_SHRINKAGE}**{len(cutoffs)} for {len(cutoffs)} cutoffs, found {d_output}"
            )
        self.vocabulary_size, self.d_model = vocabulary_size, d_model
        self.rows = nn.Embedding(vocabulary_size, d_model if d_embed is None else d_embed)
        nn.init.normal_(self.rows.weight, std=self.rows.embedding_dim**-0.5)
        self.project = nn.Identity() if d_embed is None else nn.Linear(d_embed, d_model)
        self.output = (
            nn.AdaptiveLogSoftmaxWithLoss(d_output, vocabulary_size, list(cutoffs), div_value=float(_SHRINKAGE))
            if cutoffs
            else nn.Linear(d_output, vocabulary_size)
        )

    @property
    def d_output(self) -> int:
        return self.output.in_features

    def forward(self, tokens_BL: Tensor) -> Tensor:
        rows_BLE = self.rows(tokens_BL)
        return self.project(rows_BLE).to(rows_BLE.dtype)  # autocast lowers only the product, not what is solved

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, normalised where the softmax is adaptive, `(…, d_output) → (…, V)`."""
        if isinstance(self.output, nn.Linear):
            return self.output(hidden)
        return self.output.log_prob(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def loss(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        if isinstance(self.output, nn.Linear):
            return F.cross_entropy(self.output(hidden_ND), targets_N, ignore_index=IGNORED)
        # PyTorch's own loss cannot ignore targets, and skips clusters that have none.
        return clustered_loss(self.edges, targets_N, partial(_tail_loss, self.output, hidden_ND))


def _tail_loss(
    output: nn.AdaptiveLogSoftmaxWithLoss, hidden_ND: Tensor, cluster: int, targets_N: Tensor, rows: Tensor | None
) -> Tensor:
    if rows is None:
        return chunked_cross_entropy(hidden_ND, output.head.weight, targets_N, reduction="sum")
    project, scores = output.tail[cluster - 1]  # pyright: ignore[reportGeneralTypeIssues]
    return chunked_cross_entropy(project(hidden_ND[rows]), scores.weight, targets_N, reduction="sum")
