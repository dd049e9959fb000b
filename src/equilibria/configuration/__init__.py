"""Recipes: the objects that a run is made of, read from TOML and the command line."""

from equilibria.configuration.reading import checked, read_recipe, recipe_from, write_recipe
from equilibria.configuration.recipe import DistributedRecipe, Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.tables import table_of

__all__ = [
    "DistributedRecipe",
    "Recipe",
    "RunRecipe",
    "TrainingRecipe",
    "checked",
    "read_recipe",
    "recipe_from",
    "table_of",
    "write_recipe",
]
