"""The recipes that come with the package, by name: `english-4m/default`."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from equilibria.errors import UserError, nearest

FOLDER = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package.

    Attributes:
        name: its path below the folder of recipes, without `.toml`.
        file: where it is.
    """

    name: str
    file: Path

    @property
    def title(self) -> str:
        """What it is: its first line."""
        with self.file.open(encoding="utf-8") as lines:
            return next(lines, "").lstrip("# ").rstrip(".\n")


def shipped_recipes() -> dict[str, ShippedRecipe]:
    """All recipes of the package, by name."""
    files = {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in sorted(FOLDER.rglob("*.toml"))}
    return {name: ShippedRecipe(name, file) for name, file in files.items()}


def shipped_recipe(name: str) -> ShippedRecipe:
    """A recipe of the package; a UserError that names the nearest one if there is none of this name."""
    recipes = shipped_recipes()
    if name not in recipes:
        raise UserError(f"there is no recipe {name}; name {_nearest(name, recipes)}")
    return recipes[name]


_TEXTS = {".txt", ".md", ".gz", ".rst", ".html"}


def recipe_file(path: Path | str) -> Path:
    """The file of a recipe: one that exists, or else that of a recipe of the package.

    Raises:
        UserError: there is neither.
    """
    file = Path(path)
    if file.suffix in _TEXTS and file.is_file():
        raise UserError(
            f"{path} is no recipe, which is a TOML file; to train on a text: "
            f"equilibria train english-4m/default --data.source files --data.files {path}"
        )
    if file.exists() and not file.is_dir():  # a pipe has no size, and may be read
        return file
    recipes = shipped_recipes()
    if (name := file.as_posix()) in recipes:
        return recipes[name].file
    if (file / "config.toml").is_file():
        raise UserError(f"{path} is a run; its recipe is {file / 'config.toml'}")
    what = "is a folder without a run" if file.is_dir() else "does not exist"
    here = {other.stem: other for other in file.parent.glob("*.toml")}
    close = nearest(file.stem, here)
    beside = f" such as {here[close]}" if close else ""
    packaged = _nearest(name.removesuffix(".toml"), recipes)
    raise UserError(f"{path} {what}; a recipe is a TOML file{beside}, or {packaged}")


def _nearest(name: str, recipes: dict[str, ShippedRecipe]) -> str:
    """Which recipe of the package may be meant: its whole name, or the last part, is most like this one."""
    last = name.rpartition("/")[2]

    def likeness(known: str) -> float:
        whole = difflib.SequenceMatcher(None, name, known).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, known.rpartition("/")[2]).ratio() - 0.01)

    best = max(recipes, key=likeness)
    close = f", of which {best} is the nearest" if likeness(best) > 0.6 else ""
    return f"one of the package{close} (`equilibria recipes` lists them)"
