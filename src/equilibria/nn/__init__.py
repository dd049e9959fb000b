"""Building blocks that know nothing of equilibria."""

from equilibria.nn.attention import RotaryAttention, causal_mask
from equilibria.nn.dropout import drop_connect, dropout_mask, embedding_row_dropout, masked
from equilibria.nn.embedding import TiedEmbedding, TokenEmbedding
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.normalisation import Normalisation, normalised
from equilibria.nn.positions import Rotation, distance_embedding, relative_shift

__all__ = [
    "FeedForward",
    "Normalisation",
    "RotaryAttention",
    "Rotation",
    "TiedEmbedding",
    "TokenEmbedding",
    "causal_mask",
    "distance_embedding",
    "drop_connect",
    "dropout_mask",
    "embedding_row_dropout",
    "masked",
    "normalised",
    "relative_shift",
]
