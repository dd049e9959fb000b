"""The runs of a sweep: how far each has come, and why it failed."""

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from equilibria.configuration import Recipe, RunRecipe, read_recipe
from equilibria.configuration.comparing import differences, run_difference, settings
from equilibria.errors import UserError, in_a_line
from equilibria.files.durable import save_text
from equilibria.runs.folder import RunFolder
from equilibria.runs.status import RunStatus
from equilibria.sweep.grid import short_keys

State = Literal["not started", "unfinished", "running", "finished", "failed", "other recipe", "damaged"]


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        state: `"running"` if another process trains it; `"failed"` if the last attempt did; `"other recipe"` if the
            folder holds a run of another recipe; `"damaged"` if the folder cannot be read.
        step: optimizer steps of its last checkpoint.
        message: why it failed, who trains it, what differs or what cannot be read; else "".
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
        """Whether it can be started or resumed."""
        return self.state in ("not started", "unfinished", "failed")


def sweep_run(recipe: Recipe) -> SweepRun:
    """A run of a sweep, from its folder."""
    status = RunStatus(RunFolder(recipe.run.folder))
    try:
        state, message = _state(recipe, status)
        last = status.evaluations[-1] if status.evaluations else {}
        return SweepRun(recipe, state, status.step, message, status.best_loss, last)
    except Exception as problem:  # of whatever kind: the other runs count
        return SweepRun(recipe, "damaged", 0, in_a_line(problem), None, {})


def _state(recipe: Recipe, status: RunStatus) -> tuple[State, str]:
    folder = status.folder
    difference = run_difference(read_recipe(folder.config), recipe) if status.started else ""
    if difference:
        return "other recipe", f"{folder.path} was run with {difference}; remove it or choose another --run.name"
    if status.step >= recipe.training.steps:
        return "finished", ""
    if status.writer is not None:
        return "running", f"{status.writer} is training it"
    failure = failure_file(recipe)
    if failure.is_file():
        return "failed", failure.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return ("unfinished" if status.started else "not started"), ""


def note_failure(recipe: Recipe, problem: Exception) -> None:
    """Writes why a run failed to a file beside its folder; a UserError if it cannot be written."""
    text = str(problem) if isinstance(problem, UserError) else "".join(traceback.format_exception(problem))
    save_text(failure_file(recipe), text.strip() + "\n")


def failure_file(recipe: Recipe) -> Path:
    """The file beside a run's folder that says why the last attempt failed."""
    return recipe.run.directory / f"{recipe.run.name}.failed"


def runs_in(folder: Path, otherwise: Recipe) -> tuple[Recipe, ...]:
    """The recipes of all runs in a sweep's folder, by name; a UserError if there are none.

    `otherwise` stands in for a recipe that cannot be read; `sweep_run` reports the damage.
    """
    configs = sorted(folder.glob("*/config.toml"))
    if not configs:
        raise UserError(f"there are no runs in {folder}; give the flags of the sweep, or its --run.name")
    recipes = []
    for config in configs:
        recipe = otherwise
        with suppress(UserError):
            recipe = read_recipe(config)
        recipes.append(replace(recipe, run=RunRecipe(name=config.parent.name, directory=folder)))
    return tuple(recipes)


def varied(recipes: Sequence[Recipe]) -> dict[str, str]:
    """The keys in which recipes differ, those that only some have included, apart from the run's; with short names."""
    every = [settings(recipe) for recipe in recipes]
    different = {key for one in every for key, _, _ in differences(every[0], one)}
    keys = [key for key in dict.fromkeys(chain(*every)) if key in different and not key.startswith("run.")]
    return dict(zip(keys, short_keys(keys), strict=True))
