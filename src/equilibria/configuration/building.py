"""From a recipe to its data and its model."""

from equilibria.configuration.recipe import Recipe
from equilibria.data import Task
from equilibria.data.prepared import opened
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.errors import UserError
from equilibria.models import TokenModel


def open_data(recipe: Recipe, progress: Progress = UNWATCHED) -> Task:
    """What the recipe's model learns: its text, encoded, or its task; a UserError where its files do not allow it."""
    return opened(recipe.data, progress)


def build_model(recipe: Recipe, vocabulary_size: int) -> TokenModel:
    """The recipe's model, freshly initialised; a UserError for numbers that do not go together."""
    try:
        return recipe.model.build(vocabulary_size)
    except ValueError as problem:
        raise UserError(str(problem)) from problem
