"""Models: a language model is an embedding with its softmax, and a cell at a depth between them."""

from equilibria.models.base import Drawn, Output, Step, TokenModel
from equilibria.models.language_model import LanguageModel

__all__ = ["Drawn", "LanguageModel", "Output", "Step", "TokenModel"]
