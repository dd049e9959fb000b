"""Building blocks that know nothing of equilibria."""

from equilibria.nn.adaptive import AdaptiveEmbedding, UntiedEmbedding
from equilibria.nn.attention import SelfAttention, causal_mask
from equilibria.nn.dropout import drop_connect, dropout_mask, embedding_row_dropout, masked
from equilibria.nn.embedding import TiedEmbedding, TokenEmbedding
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.normalisation import normalised
from equilibria.nn.positions import relative_shift
from equilibria.nn.relative_attention import RelativeAttention

__all__ = [
    "AdaptiveEmbedding",
    "FeedForward",
    "RelativeAttention",
    "SelfAttention",
    "TiedEmbedding",
    "TokenEmbedding",
    "UntiedEmbedding",
    "causal_mask",
    "drop_connect",
    "dropout_mask",
    "embedding_row_dropout",
    "masked",
    "normalised",
    "relative_shift",
]
