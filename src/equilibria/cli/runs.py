"""`equilibria runs`."""

import json as json_format
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from equilibria.cli.output import age, size_on_disk
from equilibria.errors import printable
from equilibria.sweep.listing import ListedRun, list_runs

_FOLDER = Path("runs")


def runs(folder: Path | None = None, /, *, json: bool = False) -> int:
    """List runs, the latest first: how far each has come, its last validation loss, its age and its size.

    Args:
        folder: of runs, also in folders below it, or a single run; default: runs.
        json: print the list as one JSON object and nothing else.
    """
    found = list_runs(folder or _FOLDER) if folder is not None or _FOLDER.exists() else []
    if json:
        print(json_format.dumps({"runs": [_figures(run) for run in found]}))
    elif found:
        _print(found)
    else:
        print(f"there are no runs in {folder or _FOLDER}; equilibria train RECIPE makes one")
    return 0


def resume_command(run: Path) -> str:
    """What continues a run."""
    return f"equilibria train {shlex.quote(str(run))} --resume"


def _figures(run: ListedRun) -> dict[str, object]:
    return {
        "run": str(run.folder),
        "state": _state(run),
        "step": run.step,
        "steps": run.steps,
        "loss": run.loss,
        "changed": run.changed,
        "bytes": run.size,
        "message": run.message or None,
        "resume": resume_command(run.folder) if run.resumable else None,
    }


def _state(run: ListedRun) -> str:
    return "interrupted" if run.state == "unfinished" else run.state


def _print(found: Sequence[ListedRun]) -> None:
    console, now = Console(), time.time()
    rows = [("run", "state", "step", "loss", "age", "size")]
    for run in found:
        step = "-" if run.state == "damaged" else f"{run.step}/{run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4g}"
        figures = (_state(run), step, loss, age(now - run.changed), size_on_disk(run.size))
        rows.append((printable(str(run.folder)), *figures))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)][1:]
    room = console.width - sum(2 + width for width in widths)
    indent = max((cell_len(name) for name, *_ in rows if cell_len(name) <= room), default=0)
    for name, state, *figures in rows:
        if cell_len(name) > room:  # a line of its own, whole, and its figures below
            console.print(Text(name), soft_wrap=True)
            name = ""
        aligned = (f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True))
        line = "  ".join((name + " " * (indent - cell_len(name)), f"{state:<{widths[0]}}", *aligned))
        console.print(Text(line, style="bold" if state == "state" else ""), soft_wrap=True)
    for run in found:
        if run.message:
            console.print(Text(printable(f"{run.folder}: {run.message}")), soft_wrap=True)
    if resumable := [run for run in found if run.resumable]:
        console.print(Text(f"resume an interrupted one: {resume_command(resumable[0].folder)}"), soft_wrap=True)
