"""Building blocks that know nothing of equilibria."""

from equilibria.nn.adaptive import AdaptiveEmbedding
from equilibria.nn.attention import RotaryAttention, causal_mask
from equilibria.nn.cross_entropy import chunked_cross_entropy
from equilibria.nn.dropout import dropout_mask, masked
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.positions import Rotation, distance_embedding, relative_shift

__all__ = [
    "AdaptiveEmbedding",
    "FeedForward",
    "RotaryAttention",
    "Rotation",
    "causal_mask",
    "chunked_cross_entropy",
    "distance_embedding",
    "dropout_mask",
    "masked",
    "relative_shift",
]
