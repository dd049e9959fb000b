"""The run of a row: the recipe it is trained with, how far its folder says it has come, and its final figures.

A finished run keeps its figures in `reproduction.json`: evaluating it otherwise later does not change the table.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.comparing import run_difference
from equilibria.data.progress import Progress
from equilibria.data.tasks.base import Task
from equilibria.data.tasks.symbols import SymbolTask
from equilibria.files.formats import read_json
from equilibria.inference.evaluation import Evaluation, evaluate_model
from equilibria.inference.loading import LoadedRun, load_run, load_task
from equilibria.measuring.size import Size, size_of
from equilibria.paper.tables import Row, Scale, TrainedTable
from equilibria.runs.folder import RunFolder
from equilibria.runs.lock import write_beside
from equilibria.runs.status import RunStatus
from equilibria.training.trainer import TrainingResult

Figures = Mapping[str, object]


def recipe_of(table: TrainedTable, row: Row, scale: Scale, seed: int, runs: Path, text: Path | None = None) -> Recipe:
    """The recipe of a row at a scale, from the package's.

    Args:
        table, row, scale, seed: of the run.
        runs: folder for the runs of all tables.
        text: a folder to read instead of the recipe's own text; its runs have a folder of their own.

    Raises:
        UserError: the recipe and the flags of the scale do not fit together.
    """
    folder = runs / (table.name if text is None else f"{table.name}-on-{text.resolve().name}")
    place = ["--run.name", f"{row.name}-{scale}-{seed}", "--run.directory", str(folder)]
    other = [] if text is None else ["--data.path", str(text)]
    return read_recipe(
        f"{table.name}/{row.recipe}", [*table.flags(row, scale), *other, *place, "--training.seed", str(seed)]
    )


@dataclass(frozen=True)
class RowStatus:
    """The figures of a finished run, a note about any other, and whether it can be started or resumed."""

    figures: Figures | None = None
    note: str = ""
    open: bool = False


def row_status(recipe: Recipe) -> RowStatus:
    """The status of a row, from its run's folder; a UserError where a file in it is damaged."""
    status = RunStatus(RunFolder(recipe.run.folder))
    if not status.started:
        return RowStatus(open=True)
    difference = run_difference(read_recipe(status.folder.config), recipe)
    if difference:
        return RowStatus(note=f"{status.folder.path} was run with {difference}; remove it to run this one")
    if _result_file(recipe).is_file():
        return RowStatus(read_json(_result_file(recipe), dict, "remove it and repeat with --train"))
    if status.writer is not None:
        return RowStatus(note=f"{status.writer} is training it")
    note = f"stopped after step {status.step} of {recipe.training.steps}; resume it with --train"
    return RowStatus(note=note, open=True)


def conclude(recipe: Recipe, result: TrainingResult, test_tokens: int | None, progress: Progress) -> Figures:
    """Evaluates the best model of a finished run, and keeps the figures in its folder.

    Args:
        recipe, result: of the run.
        test_tokens: how much of a text to read; None for all. A task is read whole.
        progress: of reading the data.

    Raises:
        UserError: the run or its text cannot be read, or the folder cannot be written.
    """
    loaded = load_run(recipe.run.folder)
    progress.say(f"evaluating {recipe.run.name}")
    evaluation, read = _evaluated(loaded, load_task(loaded, progress), test_tokens, progress)
    figures = {
        **read,
        "step": loaded.step,
        "training_seconds": result.seconds,
        "size": asdict(size_of(loaded.model)),
        **evaluation.to_json(),
    }
    write_beside(loaded.folder, _result_file(recipe), json.dumps(figures, indent=1) + "\n")
    return figures


def _evaluated(
    loaded: LoadedRun, task: Task, test_tokens: int | None, progress: Progress
) -> tuple[Evaluation, Figures]:
    """The evaluation on test text, else on validation text or on what the task holds out; and which of them it was."""
    training, model = loaded.recipe.training, loaded.model
    split = "test" if "test" in task.splits() else "valid"
    sizes = training.batch_size, training.segment_length
    if isinstance(task, SymbolTask):
        read = {"data": task.name, "split": "held out", "chance": task.chance}
        return evaluate_model(model, task.split(split), *sizes, progress=progress), read
    result = evaluate_model(model, task.split(split), *sizes, max_tokens=test_tokens, progress=progress)
    return result, {"data": task.name, "split": split}


def trained_size(figures: Figures) -> Size:
    """The size of a finished run's model, with the vocabulary of the text it read."""
    size = figures["size"]
    assert isinstance(size, dict)
    return Size(**size)


def _result_file(recipe: Recipe) -> Path:
    return recipe.run.folder / "reproduction.json"
