"""Flags of a recipe: whatever a command does not know itself is a key of the recipe and its value."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.runs.folder import RunFolder

Count = Annotated[int, Parameter(validator=Number(gte=1))]
"""A number of things, at least one."""

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""A part of a flag of the recipe."""


def recipe_or_run(path: Path, flags: tuple[str, ...]) -> Recipe:
    """The recipe of a file or of a run; that of a run is about the folder it lies in, wherever that is.

    Raises:
        UserError: as `read_recipe`.
    """
    run = RunFolder.named(path)
    if run is None:
        return read_recipe(path, flags)
    folder = run.path if run.path.name not in ("", "..") else run.path.resolve()
    return read_recipe(run.config, flags, RunRecipe(name=folder.name, directory=folder.parent))
