"""Where tokens become features and features tokens: one module owns what both ways share."""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.cross_entropy import IGNORED, chunked_cross_entropy
from equilibria.ranges import at_least

# From this many tokens on the scores of a batch outgrow everything else, and a chunked loss is faster too
# (docs/lab-notes.md).
_LARGE = 20_000


class TokenEmbedding(nn.Module, ABC):
    """What a language model needs of its embedding. `N` positions, `D = d_model`, `V = vocabulary_size`."""

    vocabulary_size: int
    d_model: int

    @abstractmethod
    def forward(self, tokens_BL: Tensor, /) -> Tensor:
        """The features of tokens, `(B, L) → (B, L, D)`."""

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
        at_least(1, vocabulary_size=vocabulary_size, d_model=d_model)
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
