"""Models: a language model is an embedding, a cell at a depth, and a tied softmax."""

from equilibria.models.language_model import LanguageModel, Output

__all__ = ["LanguageModel", "Output"]
