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
from equilibria.configuration.distributed import DistributedRecipe
from equilibria.configuration.model import ModelRecipe, model_problems
from equilibria.configuration.training import TrainingRecipe, training_problems

LONGEST_NAME = 240
"""Bytes of a run's name: file systems take 255, and a file beside it may need an ending."""


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
    distributed: Annotated[DistributedRecipe, Parameter(group="distributed")] = field(default_factory=DistributedRecipe)
    """How several processes share the work."""


def problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with values taken together that are right one by one; each line begins with a key."""
    yield from data_problems(recipe.data)
    yield from model_problems(recipe.model)
    yield from training_problems(recipe.training)
    yield from _compilation_problems(recipe)
    reads_source = recipe.model.baseline.kind == ENCODER_DECODER
    if reads_source != (recipe.data.source == "reversal"):
        yield f'data.source = "reversal" and model.baseline.kind = "{ENCODER_DECODER}" go together: give both or none'
    yield from _name_problems(recipe.run.name)


def _name_problems(name: str) -> Iterator[str]:
    """Why a folder cannot have the name of the run."""
    if not name.isprintable():
        yield f"run.name = {name!r}: expected a name that can be printed"
    elif name in ("", ".", "..") or Path(name).name != name:
        yield f'run.name = "{name}": expected a name without slashes; where the folder is says run.directory'
    elif len(name.encode()) > LONGEST_NAME:
        yield f'run.name = "{name[:20]}…": has {len(name.encode())} bytes, expected at most {LONGEST_NAME}'


def _compilation_problems(recipe: Recipe) -> Iterator[str]:
    """Why the cell cannot be compiled, where it shall be."""
    depth = recipe.model.depth
    if not recipe.training.compile:
        return
    if recipe.model.baseline.kind is not None:
        yield "training.compile is for a cell, and model.baseline has none"
    if depth.jacobian_penalty or depth.schedule.jacobian_weight:
        yield "training.compile: a Jacobian penalty needs second derivatives, which compiled code has not"
    for solver in (depth.solver, depth.eval_solver):
        if solver.method == "newton_krylov" and solver.products == "exact":
            yield 'training.compile: exact products need forward mode, which compiled code has not; use "differences"'
