"""Long work on data, shown: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from equilibria.errors import printable


@dataclass(frozen=True)
class ConsoleProgress:
    """Shows the progress of `equilibria.data.progress.Progress` on a console."""

    console: Console

    def say(self, sentence: str) -> None:
        self.console.out(printable(sentence))

    @contextmanager
    def bar(self, sentence: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.console.out(printable(sentence))
        if not self.console.is_terminal:
            yield lambda amount: None
            return
        columns = (TextColumn(" "), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(sentence, total=total)
            yield lambda amount: progress.advance(task, amount)
