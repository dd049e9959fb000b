"""`equilibria train`."""

import json as json_format
from pathlib import Path

from cyclopts import App
from rich.console import Console

from equilibria.cli.progress import ConsoleProgress
from equilibria.configuration import Recipe, build_depth_schedule, build_model, build_task, check_recipe
from equilibria.configuration.reading import Settings, fill_from_file
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer, TrainingResult

command = App(name="train", usage="Usage: equilibria train RECIPE [OPTIONS]", config=fill_from_file)


@command.default
def train(recipe: Path, /, *, settings: Settings, resume: bool = False, json: bool = False) -> int:
    """Train the model of a recipe.

    Each key of a recipe is a flag too, and a flag has the last word. Ctrl-C saves a checkpoint first.

    Args:
        recipe: the TOML file.
        settings: the recipe.
        resume: continue the run from its last checkpoint.
        json: print how the run ended as one JSON object on stdout; progress goes to stderr.
    """
    check_recipe(settings, recipe)
    result = run_training(settings, resume, Console(stderr=json))
    if json:
        print(json_format.dumps(_figures(result)))
    return exit_code(result)


def run_training(recipe: Recipe, resume: bool, console: Console) -> TrainingResult:
    """Prepares the text or the task, builds the model and trains it.

    Raises:
        UserError: the text, the run folder or a checkpoint does not allow it.
    """
    task = build_task(recipe, ConsoleProgress(console))
    seed_everything(recipe.training.seed)
    model = build_model(recipe, task.tokenizer.vocabulary_size)
    return Trainer(model, recipe, task, recipe.run.folder, console, build_depth_schedule(recipe)).run(resume)


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
