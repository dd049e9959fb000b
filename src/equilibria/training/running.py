"""From a recipe to a trained run."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.building import build_model, open_data
from equilibria.data.progress import UNWATCHED, Progress
from equilibria.distributed import joined, training_device
from equilibria.inference.loading import load_trained
from equilibria.runs.folder import RunFolder
from equilibria.runs.trackers import Tracker
from equilibria.training.preparation import check_startable, made_before
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer, TrainingResult


def train(
    recipe: Recipe | Path | str,
    *,
    resume: bool = False,
    console: Console | None = None,
    progress: Progress = UNWATCHED,
    trackers: Sequence[Tracker] = (),
) -> TrainingResult:
    """Prepares the text or the task, builds the model and trains it, with the processes that torchrun has started.

    Args:
        recipe: the whole recipe, or its file.
        resume: continue the run in the recipe's folder from its last checkpoint.
        console: where to show how training goes; nowhere when None.
        progress: receives the stages of preparing a text.
        trackers: receive each record of the metrics.

    Raises:
        RunInUse: another process writes the run.
        UserError: the text, the run folder or a checkpoint does not allow it.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    folder = RunFolder(recipe.run.folder)
    device = training_device(recipe.training.device)
    with joined(device) as world:
        if world.main:  # before what takes long
            check_startable(folder, resume or made_before(folder))
        with world.main_first():
            task = open_data(recipe, progress if world.main else UNWATCHED)
        seed_everything(recipe.training.seed)
        model = build_model(recipe, task.tokenizer.vocabulary_size)
        if recipe.training.initial_weights is not None and not (resume and folder.saved):
            load_trained(model, recipe.training.initial_weights)
        model.to(device)
        shown = Console(quiet=True) if console is None else console
        return Trainer(model, recipe, task, folder.path, shown, world, trackers).run(resume)
