"""`equilibria train`."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App
from cyclopts.argument import ArgumentCollection
from rich.console import Console

from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress
from equilibria.configuration import Recipe, RunRecipe, build_depth_schedule, build_model, build_task, check_recipe
from equilibria.configuration.reading import Settings, fill
from equilibria.data.progress import UNWATCHED
from equilibria.distributed import joined, training_device
from equilibria.inference.loading import load_trained
from equilibria.runs.folder import RunFolder
from equilibria.runs.trackers import Tracker
from equilibria.training.preparation import check_startable, made_before
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer, TrainingResult


def _fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Takes from the recipe what the flags leave open; that of a run is about the run it lies in, wherever that is."""
    del app, commands
    given = arguments[0].tokens
    if not given:
        return
    path = Path(given[0].value)
    run = RunFolder.named(path)
    if run is None:
        fill(arguments, path)
        return
    folder = run.path if run.path.name not in ("", "..") else run.path.resolve()
    fill(arguments, run.config, RunRecipe(name=folder.name, directory=folder.parent))


command = App(name="train", usage="Usage: equilibria train RECIPE [OPTIONS]", config=_fill)


@command.default
def train(recipe: Path, /, *, settings: Settings, resume: bool = False, json: bool = False) -> int:
    """Train the model of a recipe.

    Each key of a recipe is a flag too, and a flag has the last word. Ctrl-C saves a checkpoint first. Several
    processes: torchrun --nproc-per-node N -m equilibria train RECIPE.

    Args:
        recipe: the TOML file, or a run folder to resume.
        settings: the recipe.
        resume: continue the run from its last checkpoint.
        json: print how the run ended as one JSON object on stdout; progress goes to stderr.
    """
    check_recipe(settings, recipe)
    go_on_unheard()
    result = run_training(settings, resume, Console(stderr=json))
    if json and result.main:
        print(json_format.dumps(_figures(result)))
    return exit_code(result)


def run_training(
    recipe: Recipe, resume: bool = False, console: Console | None = None, trackers: Sequence[Tracker] = ()
) -> TrainingResult:
    """Prepares the text or the task, builds the model and trains it, with the processes that torchrun has started.

    Args:
        recipe: the whole recipe.
        resume: continue the run in the recipe's folder.
        console: where to show progress; standard output when None.
        trackers: get each record of the metrics.

    Raises:
        RunInUse: another process writes the run.
        UserError: the text, the run folder or a checkpoint does not allow it.
    """
    console = console or Console()
    device = training_device(recipe.training.device)
    with joined(device) as world:
        if world.main:  # before what takes long
            folder = RunFolder(recipe.run.folder)
            check_startable(folder, resume or made_before(folder))
        with world.main_first():
            task = build_task(recipe, ConsoleProgress(console) if world.main else UNWATCHED)
        seed_everything(recipe.training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        begun = resume and RunFolder(recipe.run.folder).saved
        if recipe.training.initial_weights is not None and not begun:
            load_trained(model, recipe.training.initial_weights)
        model.to(device)
        depths = build_depth_schedule(recipe)
        return Trainer(model, recipe, task, recipe.run.folder, console, depths, world, trackers).run(resume)


def exit_code(result: TrainingResult) -> int:
    """0, or what a shell expects of a process that was stopped by a signal."""
    return 0 if result.interrupted is None else 128 + result.interrupted


def _figures(result: TrainingResult) -> dict[str, object]:
    return {
        "run": str(result.folder),
        "step": result.step,
        "interrupted": result.interrupted is not None,
        "best_loss": result.best_loss,
        "validation": None if result.validation is None else result.validation.to_json(),
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
    }
