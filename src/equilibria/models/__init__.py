"""Models: a language model is an embedding with its softmax, and a cell at a depth between them."""

from equilibria.models.base import Output, TokenModel
from equilibria.models.decoding import Decoder
from equilibria.models.language_model import LanguageModel
from equilibria.models.recipe import LanguageModelRecipe, ModelRecipe
from equilibria.models.regularisation import Regularisation
from equilibria.models.sampling import Sampling
from equilibria.nn import AdaptiveEmbedding, TiedEmbedding, TokenEmbedding, UntiedEmbedding

__all__ = [
    "AdaptiveEmbedding",
    "Decoder",
    "LanguageModel",
    "LanguageModelRecipe",
    "ModelRecipe",
    "Output",
    "Regularisation",
    "Sampling",
    "TiedEmbedding",
    "TokenEmbedding",
    "TokenModel",
    "UntiedEmbedding",
]
