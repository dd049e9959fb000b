"""From flags with several values to a recipe for each combination of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from equilibria.configuration.reading import read_flags, read_recipe
from equilibria.configuration.recipe import LONGEST_NAME, Recipe, RunRecipe
from equilibria.errors import UserError


@dataclass(frozen=True)
class Axis:
    """A key and the values it takes in turn, as they are written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values, the last of which changes fastest, with flags that every run has."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    def recipes(self, file: Path) -> tuple[Recipe, ...]:
        """The recipe in a file, at each combination: the runs' folder has the name of the recipe's own run.

        Raises:
            UserError: the recipe or a combination of values is invalid, two have the same name, or a name is too long.
        """
        combinations = tuple(product(*(axis.values for axis in self.axes)))
        names = [self._name(values) for values in combinations]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"two runs of the sweep would have the name {twice}; write their values otherwise")
        longest = max(names, key=lambda name: len(name.encode()))
        if len(longest.encode()) > LONGEST_NAME:
            raise UserError(f"a run would have the name {longest}, too long for a folder; sweep fewer values")
        return tuple(self._recipe(file, name, values) for name, values in zip(names, combinations, strict=True))

    def _name(self, values: tuple[str, ...]) -> str:
        keys = short_keys([axis.key for axis in self.axes])
        return ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True)).replace("/", "_")

    def _recipe(self, file: Path, name: str, values: tuple[str, ...]) -> Recipe:
        varied = [f"--{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True)]
        recipe = read_recipe(file, [*self.fixed, *varied])
        return replace(recipe, run=RunRecipe(name=name, directory=recipe.run.folder))


def read_grid(flags: Sequence[str]) -> Grid:
    """The grid of flags such as `["--training.seed", "0,1,2", "--training.steps=9"]`: commas separate an axis's values.

    Raises:
        UserError: a value is empty or repeated, a flag with several values is repeated, or an argument has no flag.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    once: set[str] = set()
    for key, values in read_flags(flags):
        if len(values) == 1 and "," in values[0]:
            axes.append(_axis(key, values[0]))
            continue
        once.add(key)
        # In one argument: a value may begin with --.
        fixed.extend([f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *values])
    for axis in axes:
        if axis.key == "run.name":
            raise UserError("--run.name: names the folder of the sweep's runs and takes one value")
        if [other.key for other in axes].count(axis.key) > 1 or axis.key in once:
            raise UserError(f"--{axis.key} is given twice; give all its values at once, separated by commas")
    return Grid(tuple(axes), tuple(fixed))


def _axis(key: str, text: str) -> Axis:
    values = tuple(text.split(","))
    if "" in values:
        raise UserError(f'--{key} = "{text}": there is no value before, after or between commas')
    if len(set(values)) < len(values):
        raise UserError(f'--{key} = "{text}": a value comes twice')
    return Axis(key, values)


def short_keys(keys: Sequence[str]) -> list[str]:
    """Dotted keys without their sections, where that is unambiguous."""
    short = [key.rpartition(".")[2] for key in keys]
    return [key if short.count(name) > 1 else name for key, name in zip(keys, short, strict=True)]
