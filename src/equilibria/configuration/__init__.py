"""Recipes: nested dataclasses read from TOML and the command line, and the objects they describe."""

from equilibria.configuration.baseline import BaselineRecipe
from equilibria.configuration.building import (
    build_corpus,
    build_gradient,
    build_model,
    build_solver,
    build_source,
    build_task,
)
from equilibria.configuration.data import DataRecipe, OtherText
from equilibria.configuration.depth import DepthRecipe, GradientRecipe, ScheduleRecipe, SolverRecipe
from equilibria.configuration.distributed import DistributedRecipe
from equilibria.configuration.model import CellRecipe, EmbeddingRecipe, ModelRecipe, RegularisationRecipe
from equilibria.configuration.reading import check_recipe, read_recipe, recipe_from, recipe_tables, write_recipe
from equilibria.configuration.recipe import Recipe, RunRecipe
from equilibria.configuration.training import RatesRecipe, TrainingRecipe

__all__ = [
    "BaselineRecipe",
    "CellRecipe",
    "DataRecipe",
    "DepthRecipe",
    "DistributedRecipe",
    "EmbeddingRecipe",
    "GradientRecipe",
    "ModelRecipe",
    "OtherText",
    "RatesRecipe",
    "Recipe",
    "RegularisationRecipe",
    "RunRecipe",
    "ScheduleRecipe",
    "SolverRecipe",
    "TrainingRecipe",
    "build_corpus",
    "build_gradient",
    "build_model",
    "build_solver",
    "build_source",
    "build_task",
    "check_recipe",
    "read_recipe",
    "recipe_from",
    "recipe_tables",
    "write_recipe",
]
