"""`equilibria recipes` and `equilibria init`."""

import json as json_format
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.configuration import Recipe, RunRecipe, read_recipe, shipped_recipe, shipped_recipes
from equilibria.data.sources.folder import FolderText
from equilibria.errors import UserError
from equilibria.files.durable import save_text
from equilibria.runs.folder import RunFolder


def recipes(*, json: bool = False) -> int:
    """List the recipes that come with the package.

    Every command that takes a recipe takes their names: `equilibria train english-4m/default`.

    Args:
        json: print their names and titles as one JSON object.
    """
    titles = {name: recipe.title for name, recipe in shipped_recipes().items()}
    if json:
        print(json_format.dumps(titles))
        return 0
    console = Console()
    for folder, names in groupby(sorted(titles, key=_place), key=lambda name: _place(name)[0]):
        if folder:
            console.print(Text(f"{folder}/", style="bold"))
        table = Table.grid(padding=(0, 2))  # as wide as the names of one folder, so that most titles fit beside them
        for name in names:
            table.add_row(Text(("  " if folder else "") + _place(name)[1]), Text(titles[name]))
        console.print(table)
    return 0


def _place(name: str) -> tuple[str, str]:
    """The folder, and the name in it."""
    folder, _, last = name.rpartition("/")
    return folder, last


def init(name: str, file: Path | None = None, /) -> int:
    """Copy a recipe of the package, to edit it.

    Args:
        name: of the recipe, as `equilibria recipes` lists it.
        file: where the copy goes, or the folder for it; default: the last part of the name, with .toml, here.
    """
    recipe = shipped_recipe(name)
    file = file / recipe.file.name if file is not None and file.is_dir() else file or Path(recipe.file.name)
    if file.exists():
        raise UserError(f"{file} exists already; name another file: equilibria init {name} FILE")
    save_text(file, recipe.file.read_text(encoding="utf-8"))
    print(f"wrote {file}; train it with: equilibria train {file}")
    data = read_recipe(file).data
    if isinstance(data, FolderText) and not data.path.is_dir():
        print(f"Its text is to be in {data.path}: train.txt and valid.txt. Any other text:")
        print(f"equilibria train {file} --data.source files --data.files TEXT")
    return 0


def recipe_at(path: Path, flags: tuple[str, ...]) -> Recipe:
    """The recipe of a file or of a run, whose name and folder are where the run is now."""
    run = RunFolder.named(path)
    if run is None:
        return read_recipe(path, flags)
    folder = run.path if run.path.name not in ("", "..") else run.path.resolve()
    return read_recipe(run.config, flags, RunRecipe(name=folder.name, directory=folder.parent))
