"""Models: a language model is an embedding with its softmax, and a cell at a depth between them."""

from equilibria.models.language_model import LanguageModel, Output

__all__ = ["LanguageModel", "Output"]
