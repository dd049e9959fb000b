"""`equilibria plan`."""

import json as json_format
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.cli.progress import ConsoleProgress
from equilibria.cli.settings import Settings
from equilibria.configuration import Recipe, read_recipe
from equilibria.configuration.building import open_data
from equilibria.data import Task
from equilibria.distributed import training_device
from equilibria.errors import UserError
from equilibria.machine.plan import MemoryPlan, Plan, PlannedData, plan_run

command = App(name="plan", usage="Usage: equilibria plan RECIPE [OPTIONS] [--KEY VALUE ...]")


@command.default
def plan(
    recipe: Path,
    /,
    *settings: Settings,
    vocabulary: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 30.0,
    json: bool = False,
) -> int:
    """Predict what a run takes: parameters, memory, tokens per second on this machine, and time.

    Sizes are counted without building the model; time and what a step saves are measured on steps of growing size. The
    text is read, and prepared as for training, unless --vocabulary says how many tokens there are.

    Args:
        recipe: the TOML file.
        settings: of the recipe.
        vocabulary: tokens in the vocabulary; random tokens then stand for the text, which need not be there. A task
            has its own.
        seconds: roughly how long measuring may take.
        json: print the figures as one JSON object and nothing else.
    """
    whole = read_recipe(recipe, settings)
    if whole.training.threads is not None:
        torch.set_num_threads(whole.training.threads)
    device, progress = torch.device(training_device(whole.training.device)), Console(stderr=True, quiet=json)
    data = _data(whole, vocabulary, progress)
    found = plan_run(whole, data, device, seconds, progress.out)
    if json:
        print(json_format.dumps({"device": str(device), "threads": torch.get_num_threads(), **found.to_json()}))
    else:
        _print(whole, found, device)
    return 0


def _data(settings: Recipe, vocabulary: int | None, progress: Console) -> PlannedData:
    """What the run reads: a task or a text, or random tokens in the place of a text."""
    is_task = isinstance(settings.data, Task)
    if vocabulary is not None and is_task:
        what = f"{settings.data.name} is a task, with tokens of its own"
        raise UserError(f"--vocabulary: {what}; leave the flag out")
    if vocabulary is not None:
        return PlannedData(vocabulary)
    try:
        task = open_data(settings, ConsoleProgress(progress))
    except UserError as problem:
        if is_task:
            raise
        raise UserError(f"{problem}; without the text: --vocabulary N, its tokens in the vocabulary") from problem
    return PlannedData(task.tokenizer.vocabulary_size, task)


def _print(settings: Recipe, found: Plan, device: torch.device) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18)
    table.add_column(justify="right", min_width=12)
    table.add_column()
    for row in (*_parameter_rows(found), *_memory_rows(found.memory), *_time_rows(settings, found)):
        table.add_row(*map(Text, row))
    console = Console()
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    console.print(f"{settings.run.name} on {device}{threads}", markup=False, highlight=False)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


Row = tuple[str, str, str]


def _parameter_rows(found: Plan) -> list[Row]:
    parts = [(f"  {name}", f"{count:,}", "") for name, count in found.footprint.parameters.items()]
    return [("parameters", f"{found.footprint.total:,}", ""), *parts]


def _memory_rows(memory: MemoryPlan) -> list[Row]:
    free = "" if memory.free is None else f"of {_size(memory.free)} free"
    saved = "not measured" if memory.saved is None else _size(memory.saved)
    average = [("  averaged weights", _size(memory.average), "")] if memory.average else []
    segments = [("  segment memory", _size(memory.segments), "")] if memory.segments else []
    return [
        ("memory", _size(memory.total), free),
        ("  weights", _size(memory.weights), ""),
        ("  gradients", _size(memory.gradients), ""),
        ("  optimizer", _size(memory.optimizer), ""),
        *average,
        ("  saved", saved, "for the backward pass of a micro-batch"),
        *([] if memory.temporaries is None else [("  temporaries", _size(memory.temporaries), "at the peak")]),
        *segments,
    ]


def _time_rows(settings: Recipe, found: Plan) -> list[Row]:
    training, cost = settings.training, found.cost
    rows = []
    if found.passes is not None:
        rows.append(("passes", f"{found.passes:.2f}", "over the training text"))
    if cost is None or found.step_seconds is None or found.tokens_per_second is None:
        return [*rows, ("time", "not measured", "")]
    if cost.evaluations is not None:
        rows.append(("evaluations", f"{cost.evaluations:.1f}", "of the cell per solve, as the model starts"))
    times = f"median of {cost.steps}" if cost.steps > 1 else "one step"
    rows += [
        ("step", f"{found.step_seconds:.3g} s", f"of {found.size} ({times})"),
        ("tokens per second", f"{found.tokens_per_second:,.0f}", "in training"),
        ("time", _time(found.run_seconds), "saving aside"),
        ("  training", _time(found.training_seconds), f"{training.steps:,} steps"),
        ("  evaluation", _time(found.evaluation_seconds), f"every {training.evaluate_every:,} steps"),
    ]
    return rows


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    whole = round(seconds)
    days = f"{whole // 86400} d " if whole >= 86400 else ""
    return f"{days}{whole // 3600 % 24}:{whole // 60 % 60:02}:{whole % 60:02}"
