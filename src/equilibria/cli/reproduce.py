"""`equilibria reproduce`."""

import json as json_format
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from equilibria.cli.output import go_on_unheard
from equilibria.cli.progress import ConsoleProgress, progress_console
from equilibria.cli.settings import Count, Natural
from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.errors import UserError, in_a_line
from equilibria.files.durable import save_text
from equilibria.measuring.size import Size, size_without_weights
from equilibria.paper import writing
from equilibria.paper.contests import memory_of, runtime_of
from equilibria.paper.published import MEASURED, TRAINED
from equilibria.paper.runs import conclude, recipe_of, row_status, trained_size
from equilibria.paper.sheet import Sheet
from equilibria.paper.tables import MeasuredTable, Row, Scale, TrainedTable, chosen
from equilibria.paper.writing import RowResult
from equilibria.runs.folder import RunFolder
from equilibria.training import train as train_run

_LONGEST_NAME = 200  # bytes: file systems take 255, and a file is written under a longer name first


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What to reproduce, and where."""

    scale: Scale
    rows: tuple[str, ...]
    seed: int
    batch_size: int | None
    text: Path | None
    out: Path
    console: Console

    def recipe(self, table: TrainedTable, row: Row) -> Recipe:
        """The recipe of a row."""
        return recipe_of(table, row, self.scale, self.seed, self.out, self.text)

    def file(self, table: str) -> Path:
        """The table as JSON; that of chosen rows is named after them, so that it never replaces the whole."""
        folder = table if self.text is None else f"{table}-on-{self.text.resolve().name}"
        rows = "" if self.batch_size is None else f"-batch-{self.batch_size}"
        name = ",".join([f"{self.scale}-{self.seed}{rows}", *sorted(set(self.rows))])
        if len(name.encode()) > _LONGEST_NAME:
            raise UserError("--rows: the table's file would have too long a name; name fewer rows or none")
        return self.out / folder / f"{name}.json"


def reproduce(
    table: Literal["copy-memory", "ptb", "wikitext-103", "memory", "runtime"],
    /,
    *,
    scale: Scale | None = None,
    train: bool = False,
    rows: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    seed: Natural = 0,
    batch_size: Count | None = None,
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
        train: train the rows that have not been run, and resume those that were interrupted.
        rows: names of rows; default: all. The file of a table of some rows is named after them.
        seed: of weights and dropout; every seed has its own runs.
        batch_size: rows of a batch of a measured table; default: that of the scale, in full the paper's 15. Fewer where
            memory is short; the file of the table is named after them.
        data_path: read the text in this folder, in the layout of WikiText, instead of the recipe's own; its runs and
            tables are in TABLE-on-FOLDER.
        out: folder for runs (TABLE/ROW-SCALE-SEED) and tables.
        json: print the table as one JSON object on stdout; progress goes to stderr.
    """
    go_on_unheard()
    scale, console = scale or ("full" if table in TRAINED else "tiny"), progress_console(json)
    asked = Reproduction(
        scale=scale, rows=rows, seed=seed, batch_size=batch_size, text=data_path, out=out, console=console
    )
    file, code = asked.file(table), 0
    if table in TRAINED:
        if batch_size is not None:
            raise UserError(f"{table} is trained by recipes, which say how many rows a batch has: omit --batch-size")
        found, sheet, code = _trained(TRAINED[table], asked, train)
    else:
        if train:
            raise UserError(f"{table} is measured, not trained: omit --train")
        found, sheet = _measured(MEASURED[table], asked)
    save_text(file, json_format.dumps(found, indent=1) + "\n")
    save_text(file.with_suffix(".md"), sheet.markdown())
    if json:
        print(json_format.dumps(found))
    else:
        place = f"Also in {file} and {file.with_suffix('.md').name}."
        replace(sheet, notes=(*sheet.notes, place)).show(Console())
    return code


def _trained(table: TrainedTable, asked: Reproduction, train: bool) -> tuple[dict[str, object], Sheet, int]:
    """The table as JSON and as text, and the exit code."""
    if asked.text is not None and not table.data:
        raise UserError(f"--data-path: {table.name} reads no text")
    signal, outcomes = None, []
    for row in chosen(table.rows, asked.rows):
        outcomes.append(_outcome(table, row, asked, train and signal is None))
        signal = signal or outcomes[-1].signal
    found = writing.trained_json(table, asked.scale, asked.seed, outcomes)
    wanting = any(outcome.figures is None and (train or outcome.size is None) for outcome in outcomes)
    code = int(wanting) if signal is None else 128 + signal
    return found, writing.trained_sheet(table, asked.scale, outcomes), code


def _outcome(table: TrainedTable, row: Row, asked: Reproduction, train: bool) -> RowResult:
    """The state of a row, which is trained first if `train` and if it can be."""
    size = None
    try:
        recipe = asked.recipe(table, row)
        size = size_without_weights(lambda: build_model(recipe, table.vocabulary_of(recipe)))
        return _reached(table, row, asked, train, recipe, size)
    except Exception as problem:  # of whatever kind: the other rows go on
        if not isinstance(problem, UserError):
            asked.console.out(traceback.format_exc())
        return RowResult(row, size, None, in_a_line(problem))


def _reached(
    table: TrainedTable, row: Row, asked: Reproduction, training: bool, recipe: Recipe, size: Size
) -> RowResult:
    state = row_status(recipe)
    if state.figures is not None:
        return RowResult(row, trained_size(state.figures), state.figures)
    if not state.open:
        return RowResult(row, size, None, state.note)
    text = getattr(recipe.data, "path", None)
    if text is not None and not text.is_dir():
        missing = f"there is no {text}; {table.data}, or name another text with --data-path"
        return RowResult(row, size, None, missing)
    if not training:
        return RowResult(row, size, None, state.note or "not started; train it with --train")
    begun, progress = RunFolder(recipe.run.folder).config.is_file(), ConsoleProgress(asked.console)
    result = train_run(recipe, resume=begun, console=asked.console, progress=progress)
    if result.interrupted is not None:
        return RowResult(row, size, None, row_status(recipe).note, result.interrupted)
    figures = conclude(recipe, result, table.test_tokens.get(asked.scale), progress)
    return RowResult(row, trained_size(figures), figures)


def _measured(table: MeasuredTable, asked: Reproduction) -> tuple[dict[str, object], Sheet]:
    rows = chosen([row for contest in table.contests for row in contest.rows], asked.rows)
    contests = [contest for contest in table.contests if any(row in rows for row in contest.rows)]
    if asked.batch_size is not None:
        table = table.with_rows(asked.scale, asked.batch_size)
    scale, seed, setting, say = asked.scale, asked.seed, table.settings[asked.scale], asked.console.out
    entered = [(contest, [asked.recipe(contest.table, row) for row in contest.rows]) for contest in contests]
    if table.name == "memory":
        costs = [memory_of(contest, recipes, setting, say) for contest, recipes in entered]
        return writing.memory_json(table, scale, seed, costs), writing.memory_sheet(table, scale, costs)
    pairs = [(contest, runtime_of(contest, recipes, setting, say)) for contest, recipes in entered]
    return writing.runtime_json(table, scale, seed, pairs), writing.runtime_sheet(table, scale, pairs)
