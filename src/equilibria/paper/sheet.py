"""A table of text, drawn once: for a terminal of 80 columns, and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equilibria.measuring.size import shortened


@dataclass(frozen=True)
class Sheet:
    """A table of text with notes below it; the first column is text, the others are figures."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def show(self, console: Console) -> None:
        """Print the table, and its notes below."""
        console.print(self._drawn())
        for note in self.notes:
            console.print(note, highlight=False, markup=False)

    def _drawn(self) -> Table:
        """For a terminal; the first column takes the room that is left."""
        table = Table(title=self.title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
        for number, header in enumerate(self.headers):
            table.add_column(Text(header), justify="right" if number else "left", no_wrap=bool(number))
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """The same with its notes, ended by a newline."""
        ruler = ["---", *["---:"] * (len(self.headers) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.headers, ruler, *self.rows)]
        notes = [f"\n- {note}" if not number else f"- {note}" for number, note in enumerate(self.notes)]
        return "\n".join([f"# {self.title}", "", *lines, *notes]) + "\n"


def count(number: float | None) -> str:
    """A number of parameters, or a dash where there is none."""
    return "–" if number is None else shortened(number)


def form(number: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if number is None else format(number, form)
