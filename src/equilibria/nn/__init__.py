"""Building blocks that know nothing of equilibria."""

from equilibria.nn.attention import CausalAttention, causal_mask
from equilibria.nn.dropout import add_masked, dropout_mask, masked
from equilibria.nn.feed_forward import FeedForward
from equilibria.nn.initialisation import initialise_normal
from equilibria.nn.normalisation import normalised
from equilibria.nn.norms import feature_norm
from equilibria.nn.positions import Rotation, distance_embedding, relative_shift
from equilibria.nn.relative_attention import RelativeAttention

__all__ = [
    "CausalAttention",
    "FeedForward",
    "RelativeAttention",
    "Rotation",
    "add_masked",
    "causal_mask",
    "distance_embedding",
    "dropout_mask",
    "feature_norm",
    "initialise_normal",
    "masked",
    "normalised",
    "relative_shift",
]
