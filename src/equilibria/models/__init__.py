"""Models: a language model is an embedding with its softmax, and a cell at a depth between them."""

from equilibria.models.base import Output, TokenModel
from equilibria.models.decoding import Decoder, Drawn, Step
from equilibria.models.language_model import LanguageModel
from equilibria.models.regularisation import Regularisation

__all__ = ["Decoder", "Drawn", "LanguageModel", "Output", "Regularisation", "Step", "TokenModel"]
