"""Recipes: nested dataclasses read from TOML and the command line, and the objects they describe."""

from equilibria.configuration.building import build_corpus, build_gradient, build_model, build_solver
from equilibria.configuration.reading import check_recipe, read_recipe, write_recipe
from equilibria.configuration.recipe import (
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    GradientRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    SolverRecipe,
    TrainingRecipe,
)

__all__ = [
    "CellRecipe",
    "DataRecipe",
    "DepthRecipe",
    "GradientRecipe",
    "ModelRecipe",
    "Recipe",
    "RunRecipe",
    "SolverRecipe",
    "TrainingRecipe",
    "build_corpus",
    "build_gradient",
    "build_model",
    "build_solver",
    "check_recipe",
    "read_recipe",
    "write_recipe",
]
