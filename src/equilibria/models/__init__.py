"""Models: a language model is an embedding with its softmax, and a cell at a depth between them."""

from equilibria.models.base import Drawn, Output, Step, TokenModel
from equilibria.models.language_model import LanguageModel
from equilibria.models.regularisation import Regularisation

__all__ = ["Drawn", "LanguageModel", "Output", "Regularisation", "Step", "TokenModel"]
