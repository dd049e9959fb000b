"""From a recipe to its model."""

import warnings

from equilibria.configuration.recipe import Recipe
from equilibria.data import Source, Task
from equilibria.errors import UserError
from equilibria.models import TokenModel


def build_model(recipe: Recipe, vocabulary_size: int) -> TokenModel:
    """The recipe's model, freshly initialised; a UserError for numbers that do not go together, or as `check_fit`."""
    try:
        model = recipe.model.build(vocabulary_size)
    except ValueError as problem:
        raise UserError(str(problem)) from problem
    check_fit(model, recipe.data)
    return model


def check_fit(model: TokenModel, data: Source | Task) -> None:
    """Raises a UserError where a model would see its answers in the data, or another grid than there is; warns where it
    does not see what they rest on."""
    task = data if isinstance(data, Task) else None
    causal = task is None or task.causal
    if not model.causal and causal:
        raise UserError(f"model.cell.causal = false: tokens would see the answers of {data.name}; give causal = true")
    if model.causal and not causal:
        warnings.warn(
            f"each answer of {data.name} may rest on all inputs, and tokens of a causal model see none after them; "
            f"give a contractive cell model.cell.causal = false",
            stacklevel=1,  # one place, so that a process says it once
        )
    grid = None if task is None else task.grid
    if grid is not None and model.columns not in (None, grid[1]):
        raise UserError(f"model.cell.columns = {model.columns}: the grid of {data.name} has {grid[1]} columns")
