"""Building blocks that know nothing of equilibria."""

from equilibria.nn.adaptive import AdaptiveEmbedding
from equilibria.nn.attention import CausalAttention, causal_mask
from equilibria.nn.cross_entropy import chunked_cross_entropy
from equilibria.nn.dropout import add_masked, drop_connect, dropout_mask, embedding_row_dropout, masked
from equilibria.nn.embedding import TiedEmbedding, TokenEmbedding
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.initialisation import initialise_normal
from equilibria.nn.normalisation import Normalisation, normalised
from equilibria.nn.norms import feature_norm
from equilibria.nn.positions import Rotation, distance_embedding, relative_shift
from equilibria.nn.relative_attention import RelativeAttention
from equilibria.nn.untied import UntiedEmbedding

__all__ = [
    "AdaptiveEmbedding",
    "CausalAttention",
    "FeedForward",
    "Normalisation",
    "RelativeAttention",
    "Rotation",
    "TiedEmbedding",
    "TokenEmbedding",
    "UntiedEmbedding",
    "add_masked",
    "causal_mask",
    "chunked_cross_entropy",
    "distance_embedding",
    "drop_connect",
    "dropout_mask",
    "embedding_row_dropout",
    "feature_norm",
    "initialise_normal",
    "masked",
    "normalised",
    "relative_shift",
]
