"""Flags of a recipe: whatever a command does not know itself is a key of the recipe and its value."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.runs.folder import RunFolder

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""A part of a flag of the recipe."""


class RecipeApp(App):
    """A command that takes a recipe and flags, whose help lists both."""

    def help_print(self, *arguments: Any, **options: Any) -> None:
        """The command's own help, then the recipe's settings."""
        super().help_print(*arguments, **options)
        from equilibria.configuration.help import print_settings  # reads the source of every class it explains

        print_settings(Console(file=sys.stdout))


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
