"""Long work, shown: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from equilibria.errors import printable


def progress_console(json: bool) -> Console:
    """Where a command shows its progress: on standard output; with --json on standard error, as plain lines."""
    return Console(stderr=json, force_terminal=False if json else None)


def side_console(json: bool) -> Console:
    """Where a command shows its progress whose standard output is its result: standard error; nowhere with --json."""
    return Console(stderr=True, quiet=json)


@dataclass(frozen=True)
class ConsoleProgress:
    """Shows the progress of `equilibria.data.progress.Progress` on a console."""

    console: Console

    def say(self, sentence: str) -> None:
        self.console.out(printable(sentence))

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        said = unit == "bytes"  # what becomes of data is worth a line in a log
        if said:
            self.say(sentence)
        if not self.console.is_terminal or self.console.quiet:
            yield lambda amount: None
            return
        columns = (TextColumn(" " if said else printable(sentence), markup=False), BarColumn(), *_counts(total, unit))
        # What is printed to standard output meanwhile stays there, whatever stream the bar is on.
        redirect = not self.console.stderr
        with Progress(*columns, console=self.console, transient=True, redirect_stdout=redirect) as progress:
            task = progress.add_task(sentence, total=total)
            yield lambda amount: progress.advance(task, amount)


def _counts(total: int | None, unit: str) -> tuple[ProgressColumn, ...]:
    """What stands beside a bar: how much is done, and how long the rest takes."""
    if unit == "bytes":
        return DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    if total is None:
        return (TimeElapsedColumn(),)
    return MofNCompleteColumn(), TextColumn(unit, markup=False), TimeRemainingColumn()
