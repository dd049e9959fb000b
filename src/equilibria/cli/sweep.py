"""`equilibria sweep`."""

import json as json_format
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from equilibria.cli.output import clock, go_on_unheard
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.settings import Natural, Settings, check_flags
from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.comparing import settings
from equilibria.errors import UserError
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import RunInUse
from equilibria.sweep.grid import read_grid
from equilibria.sweep.runs import SweepRun, failure_file, note_failure, runs_in, sweep_run, varied
from equilibria.training import train


def sweep(
    recipe: Path,
    /,
    *flags: Settings,
    only_list: Annotated[bool, Parameter(name="--list")] = False,
    index: Natural | None = None,
    json: bool = False,
) -> int:
    """Train a recipe at every combination of values, one after another, and print a table of the runs.

    Each run has a folder as `equilibria train` makes it: NAME/KEY=VALUE,KEY=VALUE, where NAME is the recipe's run.name.
    Finished runs are skipped, and so are those that another process trains; interrupted ones resume, failed ones are
    tried again. The exit code is 1 if a run is not finished then.

    Args:
        recipe: the TOML file.
        flags: flags of `equilibria train`, after the recipe; one with several values, separated by commas, takes each
            in turn: --training.seed 0,1,2 --training.learning_rate 1e-3,3e-3.
        only_list: train nothing; without flags of several values, list all runs in the sweep's folder.
        index: train only the run of this number, counted from 0, as one job of an array does.
        json: print the table as one JSON object on stdout; progress goes to stderr.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep trains each run in one process; start runs of several with torchrun and train")
    check_flags(sweep, flags)
    go_on_unheard()
    recipes = _recipes(recipe, flags, only_list)
    if index is not None and index >= len(recipes):
        raise UserError(f"--index {index}: the sweep has {len(recipes)} runs, 0 to {len(recipes) - 1}")
    chosen = range(len(recipes)) if index is None else (index,)
    signal = None if only_list else _train(recipes, chosen, progress_console(json))
    runs = {number: sweep_run(recipes[number]) for number in chosen}
    keys = varied(recipes)
    if json:
        print(json_format.dumps({"runs": [_figures(number, keys, run) for number, run in runs.items()]}))
    else:
        _print(runs, keys)
    if signal is not None:
        return 128 + signal
    return 0 if only_list or all(run.state == "finished" for run in runs.values()) else 1


def _recipes(recipe: Path, flags: Sequence[str], only_list: bool) -> tuple[Recipe, ...]:
    grid = read_grid(flags)
    if grid.axes:
        return grid.recipes(recipe)
    if only_list:
        whole = read_recipe(recipe, flags)
        return runs_in(whole.run.folder, whole)
    raise UserError("there is nothing to sweep over; give a flag several values, as --training.seed 0,1,2")


def _train(recipes: Sequence[Recipe], chosen: Sequence[int], console: Console) -> int | None:
    """Trains what is not finished; returns the number of the signal that stopped it, if one did."""
    for place, number in enumerate(chosen, start=1):
        recipe = recipes[number]
        if not sweep_run(recipe).open:
            continue
        console.out(f"run {number} ({place} of {len(chosen)}): {recipe.run.name}")
        failure_file(recipe).unlink(missing_ok=True)
        try:
            begun = RunFolder(recipe.run.folder).config.is_file()
            result = train(recipe, resume=begun, console=console, progress=ConsoleProgress(console))
        except Exception as problem:  # of whatever kind: the other runs go on
            if isinstance(problem, RunInUse) or sweep_run(recipe).state == "finished":  # another process was faster
                console.out(f"skipped: {problem}")
                continue
            console.out(f"failed: {problem}")
            note_failure(recipe, problem)
            continue
        if result.interrupted is not None:
            return result.interrupted
    return None


def _figures(number: int, keys: dict[str, str], run: SweepRun) -> dict[str, object]:
    values = _settings(run)
    return {
        "index": number,
        "run": str(run.recipe.run.folder),
        "settings": {key: values.get(key) for key in keys},
        "state": run.state,
        "step": run.step,
        "steps": run.recipe.training.steps,
        "best_loss": run.best_loss,
        **{name: run.figures.get(name) for name in ("loss", "perplexity", "evaluations", "residual", "seconds")},
        "message": run.message or None,
    }


def _settings(run: SweepRun) -> dict[str, object]:
    """Of its recipe, by dotted key; none of a damaged run."""
    return {} if run.state == "damaged" else settings(run.recipe)


def _print(runs: dict[int, SweepRun], keys: dict[str, str]) -> None:
    table = Table(box=None, header_style="")
    for heading in ("run", *keys.values()):
        table.add_column(heading, justify="right")
    table.add_column("state", no_wrap=True)
    for heading in ("best loss", "loss", "residual", "time"):
        table.add_column(heading, justify="right")
    for number, run in runs.items():
        values = _settings(run)
        loss, residual, seconds = (run.figures.get(name) for name in ("loss", "residual", "seconds"))
        state = f"step {run.step}/{run.recipe.training.steps}" if run.state == "unfinished" else run.state
        table.add_row(
            *(str(number), *(str(values.get(key, "-")) for key in keys), state),
            *(_shown(run.best_loss, ".4f"), _shown(loss, ".4f"), _shown(residual, ".1e")),
            clock(seconds) if isinstance(seconds, int | float) else "-",
        )
    console = Console()
    console.print(table)
    for number, run in runs.items():
        if run.message:
            console.print(f"run {number}: {run.message}", markup=False, highlight=False, soft_wrap=True)


def _shown(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"
