"""`equilibria runs`."""

import json as json_format
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
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
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("state", "step", "loss", "age", "size"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    now = time.time()
    for run in found:
        step = "-" if run.state == "damaged" else f"{run.step}/{run.steps}"
        loss = "-" if run.loss is None else f"{run.loss:.4g}"
        cells = (_state(run), step, loss, age(now - run.changed), size_on_disk(run.size))
        table.add_row(Text(printable(str(run.folder))), *map(Text, cells))
    console = Console()
    console.print(table)
    for run in found:
        if run.message:
            console.print(Text(printable(f"{run.folder}: {run.message}")), soft_wrap=True)
    if resumable := [run for run in found if run.resumable]:
        console.print(Text(f"resume an interrupted one: {resume_command(resumable[0].folder)}"), soft_wrap=True)
