"""How far the runs of a sweep have come, from what their folders say."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.configuration.comparing import run_difference, settings
from equilibria.errors import UserError, in_a_line
from equilibria.files.durable import write_durably
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import writer_of
from equilibria.runs.metrics import read_metrics
from equilibria.sweep.grid import short_keys

State = Literal["not begun", "unfinished", "running", "finished", "failed", "other recipe", "damaged"]


@dataclass(frozen=True)
class Standing:
    """A run of a sweep.

    Attributes:
        recipe: its recipe.
        state: `"running"` where another process trains it; `"failed"` where the last attempt did; `"other recipe"`
            where the folder is of a run with another one; `"damaged"` where it cannot be read.
        step: optimizer steps of its last checkpoint.
        message: why it failed, who trains it, what is other or what cannot be read; "" for nothing.
        best_loss: the validation loss of its best checkpoint, in nats per token; None before there is one.
        figures: of the last evaluation in training.
    """

    recipe: Recipe
    state: State
    step: int
    message: str
    best_loss: float | None
    figures: Mapping[str, object]

    @property
    def open(self) -> bool:
        """Whether it can be begun or gone on with."""
        return self.state in ("not begun", "unfinished", "failed")


def standing(recipe: Recipe) -> Standing:
    """What the folder of a run says."""
    try:
        return _read(recipe)
    except Exception as problem:  # whatever is in a file of it, the other runs are worth having
        return Standing(recipe, "damaged", 0, in_a_line(problem), None, {})


def _read(recipe: Recipe) -> Standing:
    folder = RunFolder(recipe.run.folder)
    evaluations = _evaluations(folder)
    # not the least of all: those at the depth of a warm-up are of another model
    best_step = folder.best_step()
    losses = [loss for line in evaluations if line["step"] == best_step and isinstance(loss := line["loss"], float)]
    index = folder.index()
    step = 0 if index is None else int(index.last.removeprefix("step-"))
    state, message = _state(recipe, folder, step)
    figures = evaluations[-1] if evaluations else {}
    return Standing(recipe, state, step, message, losses[-1] if losses else None, figures)


def _state(recipe: Recipe, folder: RunFolder, step: int) -> tuple[State, str]:
    """The state of a run that has been saved at a step, and what is to be said about it."""
    difference = run_difference(read_recipe(folder.config), recipe) if folder.config.is_file() else ""
    if difference:
        return "other recipe", f"{folder.path} was run with {difference}; remove it or choose another --run.name"
    if step >= recipe.training.steps:
        return "finished", ""
    writer = writer_of(folder)
    if writer is not None:
        return "running", f"{writer} trains it"
    failure = _failure_file(recipe)
    if failure.is_file():
        return "failed", failure.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return ("unfinished" if folder.config.is_file() else "not begun"), ""


def _evaluations(folder: RunFolder) -> list[dict[str, object]]:
    if not folder.metrics.is_file():
        return []
    return [line for line in read_metrics(folder.metrics) if line.get("kind") == "valid"]


def note_failure(recipe: Recipe, problem: Exception) -> None:
    """Keeps, beside the run's folder, why it failed.

    Raises:
        UserError: the file cannot be written.
    """
    text = str(problem) if isinstance(problem, UserError) else "".join(traceback.format_exception(problem))
    path = _failure_file(recipe)
    try:
        write_durably(path, text.strip() + "\n")
    except OSError as trouble:
        raise UserError(f"{path} cannot be written ({trouble}); the run had failed: {problem}") from problem


def forget_failure(recipe: Recipe) -> None:
    """Before a run is tried again."""
    _failure_file(recipe).unlink(missing_ok=True)


def _failure_file(recipe: Recipe) -> Path:
    return recipe.run.directory / f"{recipe.run.name}.failed"


def runs_in(folder: Path, otherwise: Recipe) -> tuple[Recipe, ...]:
    """The recipes of all runs in a sweep's folder, in the order of their names.

    Args:
        folder: of the sweep.
        otherwise: what stands for a recipe that cannot be read, in which its `standing` finds the damage too.

    Raises:
        UserError: there is none.
    """
    configs = sorted(folder.glob("*/config.toml"))
    if not configs:
        raise UserError(f"there are no runs in {folder}; give the flags of the sweep, or its --run.name")
    return tuple(
        replace(_recipe_in(config, otherwise), run=RunRecipe(name=config.parent.name, directory=folder))
        for config in configs
    )


def _recipe_in(config: Path, otherwise: Recipe) -> Recipe:
    try:
        return read_recipe(config)
    except UserError:
        return otherwise


def varied(recipes: Sequence[Recipe]) -> dict[str, str]:
    """The keys in which recipes differ, but for the name of the run, and a short name for each."""
    every = [settings(recipe) for recipe in recipes]
    keys = [key for key in every[0] if not key.startswith("run.") and any(one[key] != every[0][key] for one in every)]
    return dict(zip(keys, short_keys(keys), strict=True))
