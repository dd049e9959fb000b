"""`equilibria reproduce`."""

import json as json_format
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from equilibria.cli.checkout import in_checkout
from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress
from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.errors import UserError, in_a_line
from equilibria.files.durable import save_text
from equilibria.measuring.size import Size, size_without_weights
from equilibria.paper.contests import entrants_of, memory_of, runtime_of
from equilibria.paper.published import MEASURED, TRAINED
from equilibria.paper.runs import conclude, recipe_of, row_status, trained_size
from equilibria.paper.sheet import Sheet
from equilibria.paper.tables import MeasuredTable, Row, Scale, TrainedTable, chosen
from equilibria.paper.writing import (
    Outcome,
    memory_json,
    memory_sheet,
    runtime_json,
    runtime_sheet,
    trained_json,
    trained_sheet,
)
from equilibria.training import train as train_run

command = App(name="reproduce")

_LONGEST_NAME = 200  # bytes: file systems take 255, and a file is written under a longer name first


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be reproduced, and where."""

    scale: Scale
    rows: tuple[str, ...]
    seed: int
    text: Path | None
    out: Path
    console: Console

    def recipe(self, table: TrainedTable, row: Row) -> Recipe:
        """The recipe of a row."""
        file = in_checkout(f"recipes/{table.name}", f"{row.recipe}.toml")
        return recipe_of(table, row, file, self.scale, self.seed, self.out, self.text)

    def file(self, table: str) -> Path:
        """The table as JSON; that of chosen rows is named after them, so that it never takes the place of the whole.

        Raises:
            UserError: it would have too long a name.
        """
        folder = table if self.text is None else f"{table}-on-{self.text.resolve().name}"
        name = ",".join([f"{self.scale}-{self.seed}", *sorted(set(self.rows))])
        if len(name.encode()) > _LONGEST_NAME:
            raise UserError("--rows: the table's file would have too long a name; name fewer rows, or none")
        return self.out / folder / f"{name}.json"

    def say(self, message: str) -> None:
        """A line on what is going on."""
        self.console.out(message)


@command.default
def reproduce(
    table: Literal["copy-memory", "ptb", "wikitext-103", "memory", "runtime"],
    /,
    *,
    scale: Scale | None = None,
    train: bool = False,
    rows: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    data_path: Path | None = None,
    out: Path = Path("runs/reproduce"),
    json: bool = False,
) -> int:
    """Print a table of the DEQ paper (arXiv:1909.01377) with our figures beside it; also as JSON and Markdown.

    The exit code is 1 if a row cannot be read, or was to be trained and has no figures; the table says why.

    Args:
        table: copy-memory, ptb and wikitext-103 are of trained models; memory and runtime are measured at once.
        scale: "tiny" takes about a minute a row on a laptop, "small" about an hour, "full" is the recipe as it is;
            default: full for trained tables, tiny for measured ones.
        train: train the rows that have not been run, and go on with those that were interrupted.
        rows: names of rows; default: all. A table of some has their names in that of its file.
        seed: of weights and dropout; every seed has runs of its own.
        data_path: read the text in this folder, in the layout of WikiText, instead of the recipe's own; its runs and
            tables have folders of their own, TABLE-on-FOLDER.
        out: folder for runs (TABLE/ROW-SCALE-SEED) and tables.
        json: print the table as one JSON object on stdout; progress goes to stderr.
    """
    go_on_unheard()
    order = Order(
        scale=scale or ("full" if table in TRAINED else "tiny"),
        rows=rows,
        seed=seed,
        text=data_path,
        out=out,
        console=Console(stderr=json),
    )
    file, code = order.file(table), 0
    if table in TRAINED:
        found, sheet, code = _trained(TRAINED[table], order, train)
    else:
        if train:
            raise UserError(f"{table} is measured, not trained: leave out --train")
        found, sheet = _measured(MEASURED[table], order)
    save_text(file, json_format.dumps(found, indent=1) + "\n")
    save_text(file.with_suffix(".md"), sheet.markdown())
    if json:
        print(json_format.dumps(found))
    else:
        console = Console()
        console.print(sheet.drawn())
        for note in (*sheet.notes, f"Also in {file} and {file.with_suffix('.md').name}."):
            console.print(note, highlight=False, markup=False)
    return code


def _trained(table: TrainedTable, order: Order, train: bool) -> tuple[dict[str, object], Sheet, int]:
    """The table, and the exit code."""
    if order.text is not None and not table.data:
        raise UserError(f"--data-path: {table.name} reads no text")
    signal, outcomes = None, []
    for row in chosen(table.rows, order.rows):
        outcome, signal_now = _outcome(table, row, order, train and signal is None)
        signal = signal or signal_now
        outcomes.append(outcome)
    found = trained_json(table, order.scale, order.seed, outcomes)
    wanting = any(outcome.figures is None and (train or outcome.size is None) for outcome in outcomes)
    code = int(wanting) if signal is None else 128 + signal
    return found, trained_sheet(table, order.scale, outcomes), code


def _outcome(table: TrainedTable, row: Row, order: Order, train: bool) -> tuple[Outcome, int | None]:
    """A row as it stands, trained first if it is to be and can be; and the signal that stopped that."""
    size = None
    try:
        recipe = order.recipe(table, row)
        size = size_without_weights(lambda: build_model(recipe, table.vocabulary_of(recipe)))
        return _reached(table, row, order, train, recipe, size)
    except Exception as problem:  # whatever it is, the other rows are worth having
        if not isinstance(problem, UserError):
            order.say(traceback.format_exc())
        return Outcome(row, size, None, in_a_line(problem)), None


def _reached(
    table: TrainedTable, row: Row, order: Order, training: bool, recipe: Recipe, size: Size
) -> tuple[Outcome, int | None]:
    """The same of a row whose recipe could be read."""
    state = row_status(recipe)
    if state.figures is not None:
        return Outcome(row, trained_size(state.figures), state.figures), None
    if not state.open:
        return Outcome(row, size, None, state.note), None
    text = getattr(recipe.data, "path", None)
    if text is not None and not text.is_dir():
        missing = f"there is no {text}; {table.data}, or name another text with --data-path"
        return Outcome(row, size, None, missing), None
    if not training:
        return Outcome(row, size, None, state.note or "not started; train it with --train"), None
    begun, progress = (recipe.run.folder / "config.toml").is_file(), ConsoleProgress(order.console)
    result = train_run(recipe, resume=begun, console=order.console, progress=progress)
    if result.interrupted is not None:
        return Outcome(row, size, None, row_status(recipe).note), result.interrupted
    figures = conclude(recipe, result, table.test_tokens.get(order.scale), progress)
    return Outcome(row, trained_size(figures), figures), None


def _measured(table: MeasuredTable, order: Order) -> tuple[dict[str, object], Sheet]:
    names = [row.name for row in chosen([row for contest in table.contests for row in contest.rows], order.rows)]
    contests = [contest for contest in table.contests if any(row.name in names for row in contest.rows)]
    setting = table.settings[order.scale]
    entered = [entrants_of(contest, lambda row, of=contest.table: order.recipe(of, row)) for contest in contests]
    if table.name == "memory":
        costs = [list(memory_of(entrants, setting, order.say)) for entrants in entered]
        found = memory_json(table, order.scale, order.seed, setting, costs)
        return found, memory_sheet(table, order.scale, setting, costs)
    times = [list(runtime_of(entrants, setting, order.say)) for entrants in entered]
    pairs = list(zip(contests, times, strict=True))
    found = runtime_json(table, order.scale, order.seed, setting, pairs)
    return found, runtime_sheet(table, order.scale, setting, pairs)
