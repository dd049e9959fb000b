"""Recipes: the objects that a run is made of, read from TOML and the command line."""

from equilibria.configuration.reading import checked, read_recipe, recipe_from, recipe_text, write_recipe
from equilibria.configuration.recipe import DistributedRecipe, Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.shipped import shipped_recipe, shipped_recipes
from equilibria.configuration.tables import table_of

__all__ = [
    "DistributedRecipe",
    "Recipe",
    "RunRecipe",
    "TrainingRecipe",
    "checked",
    "read_recipe",
    "recipe_from",
    "recipe_text",
    "shipped_recipe",
    "shipped_recipes",
    "table_of",
    "write_recipe",
]
