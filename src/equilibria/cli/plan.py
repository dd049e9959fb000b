"""`equilibria plan`."""

import json as json_format
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.cli.output import clock
from equilibria.cli.progress import ConsoleProgress
from equilibria.cli.recipes import recipe_at
from equilibria.cli.settings import Count, Positive, Settings, check_flags
from equilibria.configuration import Recipe
from equilibria.data import Task
from equilibria.data.prepared import opened
from equilibria.distributed import training_device
from equilibria.errors import UserError
from equilibria.machine.plan import MemoryPlan, Plan, PlannedData, plan_run


def plan(
    recipe: Path,
    /,
    *settings: Settings,
    vocabulary: Count | None = None,
    seconds: Positive = 30.0,
    json: bool = False,
) -> int:
    """Predict what a run takes: parameters, memory, tokens per second on this machine, and time.

    Sizes are counted without building the model; time and memory of a step are measured on steps of growing size. The
    text is read, and prepared as for training, unless --vocabulary says how many tokens it has.

    Args:
        recipe: the TOML file, the name of a recipe of the package, or a run folder.
        settings: of the recipe.
        vocabulary: tokens in the vocabulary; random tokens then stand in for the text. A task has its own.
        seconds: roughly how long measuring may take.
        json: print the figures as one JSON object and nothing else.
    """
    check_flags(plan, settings)
    return print_plan(recipe_at(recipe, settings), vocabulary, seconds, json)


def print_plan(whole: Recipe, vocabulary: int | None = None, seconds: float = 30.0, json: bool = False) -> int:
    """Prints what a run takes; returns 0."""
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
    """A task or a text, or random tokens in place of a text."""
    is_task = isinstance(settings.data, Task)
    if vocabulary is not None and is_task:
        raise UserError(f"--vocabulary: {settings.data.name} is a task, with tokens of its own; omit the flag")
    if vocabulary is not None:
        return PlannedData(vocabulary)
    try:
        task = opened(settings.data, ConsoleProgress(progress))
    except UserError as problem:
        if is_task:
            raise
        raise UserError(
            f"{problem}; without the text `equilibria plan` takes --vocabulary N, its tokens in the vocabulary"
        ) from problem
    return PlannedData(task.tokenizer.vocabulary_size, task)


def _print(settings: Recipe, found: Plan, device: torch.device) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=18)
    table.add_column(justify="right", min_width=12)
    table.add_column()
    total = ("parameters", f"{sum(found.parameters.values()):,}", "")
    parts = [(f"  {name}", f"{count:,}", "") for name, count in found.parameters.items()]
    for row in (total, *parts, *_memory_rows(found.memory), *_time_rows(settings, found)):
        table.add_row(*map(Text, row))
    console = Console()
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    console.print(f"{settings.run.name} on {device}{threads}", markup=False, highlight=False)
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


Row = tuple[str, str, str]


def _memory_rows(memory: MemoryPlan) -> list[Row]:
    free = "" if memory.free is None else f"of {_size(memory.free)} free"
    parts = [
        ("weights", memory.weights, ""),
        ("gradients", memory.gradients, ""),
        ("optimizer", memory.optimizer, ""),
        ("averaged weights", memory.average or None, ""),
        ("saved", memory.saved, "for the backward pass of a micro-batch"),
        ("temporaries", memory.temporaries, "at the peak"),
        ("segment memory", memory.segments or None, ""),
    ]
    shown = [(f"  {name}", _size(size), note) for name, size, note in parts if size is not None or name == "saved"]
    return [("memory", _size(memory.total), free), *shown]


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
        return "not measured"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else clock(seconds)
