"""Building blocks that know nothing of equilibria."""

from equilibria.nn.attention import RotaryAttention, causal_mask
from equilibria.nn.dropout import dropout_mask, masked
from equilibria.nn.embedding import TiedEmbedding, TokenEmbedding
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.positions import Rotation, distance_embedding, relative_shift
from equilibria.nn.untied import UntiedEmbedding

__all__ = [
    "FeedForward",
    "RotaryAttention",
    "Rotation",
    "TiedEmbedding",
    "TokenEmbedding",
    "UntiedEmbedding",
    "causal_mask",
    "distance_embedding",
    "dropout_mask",
    "masked",
    "relative_shift",
]
