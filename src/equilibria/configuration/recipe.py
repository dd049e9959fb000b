"""A whole recipe: its sections, each a dataclass of its own module; the text below each field is what
`equilibria train --help` shows.

A key and its flag have the same name: `tol` below `[model.depth.solver]` is `--model.depth.solver.tol`. An option that
is left out takes the default of the class that is named; one that the named class does not have is an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equilibria.configuration.baseline import ENCODER_DECODER
from equilibria.configuration.data import DataRecipe, data_problems
from equilibria.configuration.model import ModelRecipe, model_problems
from equilibria.configuration.training import TrainingRecipe, training_problems


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Where the results go."""

    name: str
    """Name of the run: of a folder that does not exist yet, unless with --resume."""
    directory: Path = Path("runs")
    """Folder of runs."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.directory / self.name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    run: Annotated[RunRecipe, Parameter(group="run")]
    """Where the results go."""
    data: Annotated[DataRecipe, Parameter(group="data")] = field(default_factory=DataRecipe)
    """The text."""
    model: Annotated[ModelRecipe, Parameter(group="model")] = field(default_factory=ModelRecipe)
    """The model."""
    training: Annotated[TrainingRecipe, Parameter(group="training")] = field(default_factory=TrainingRecipe)
    """How it is trained."""


def problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with values taken together that are right one by one; each line begins with a key."""
    yield from data_problems(recipe.data)
    yield from model_problems(recipe.model)
    yield from training_problems(recipe.training)
    reads_source = recipe.model.baseline.kind == ENCODER_DECODER
    if reads_source != (recipe.data.source == "reversal"):
        yield f'data.source = "reversal" and model.baseline.kind = "{ENCODER_DECODER}" go together: give both or none'
    name = recipe.run.name
    if name in ("", ".", "..") or Path(name).name != name:
        yield f'run.name = "{name}": expected a name without slashes; where the folder is says run.directory'
