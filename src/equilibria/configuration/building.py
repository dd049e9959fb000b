"""From a recipe to its model."""

from equilibria.configuration.recipe import Recipe
from equilibria.errors import UserError
from equilibria.models import TokenModel


def build_model(recipe: Recipe, vocabulary_size: int) -> TokenModel:
    """The recipe's model, freshly initialised; a UserError for numbers that do not go together."""
    try:
        return recipe.model.build(vocabulary_size)
    except ValueError as problem:
        raise UserError(str(problem)) from problem
