"""The display of training: a live table on a terminal, plain lines elsewhere."""

import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Figures = Mapping[str, object]

_LEAST_WANTED = ("perplexity", "residual", "tokens/s", "evaluations", "time left", "loss")
"""Columns to drop on a narrow terminal, in this order."""


def display(console: Console, name: str, steps: int, done: int) -> "Display":
    """The display of a run of `steps`, of which `done` are finished; a live table if the console is a terminal."""
    pace = Pace(steps, done)
    return LiveDisplay(console, name, pace) if console.is_terminal else PlainDisplay(console, pace)


@dataclass
class Pace:
    """Progress and remaining wall-clock time, including evaluations and saving.

    Attributes:
        steps: of the whole run.
        first: steps finished before this process started.
        done: steps finished.
        started: when the first step of this process began, on the monotonic clock in seconds.
    """

    steps: int
    first: int
    done: int = field(init=False)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.done = self.first

    def time_left(self) -> str:
        """As `h:mm:ss`; a question mark before the first step."""
        taken = self.done - self.first
        if taken == 0:
            return "?"
        seconds = round((time.monotonic() - self.started) / taken * (self.steps - self.done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class Display(AbstractContextManager["Display"]):
    """Shows the progress of a training. `train` and `valid` take the figures of the metrics lines."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self._console = console
        self._pace = pace

    def __exit__(self, *problem: object) -> None: ...

    def advance(self, step: int) -> None:
        """A step is finished; called for every one."""
        self._pace.done = step

    @abstractmethod
    def train(self, step: int, figures: Figures) -> None:
        """Means of the last steps."""

    def valid(self, step: int, figures: Figures) -> None:
        """An evaluation on validation text."""
        self.say(validation_line(step, figures))

    def say(self, message: str) -> None:
        """A message."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)


class PlainDisplay(Display):
    """One line per figure, for log files."""

    def train(self, step: int, figures: Figures) -> None:
        self.say(
            f"step {step}/{self._pace.steps}  loss {_loss(figures)}  "
            f"perplexity {_number(figures['perplexity'], '.2f')}  "
            f"evaluations {_number(figures['evaluations'], '.1f')}  "
            f"residual {_number(figures['residual'], '.1e')}  "
            f"{_number(figures['tokens_per_second'], ',.0f')} tokens/s  {self._pace.time_left()} left"
        )


class LiveDisplay(Display):
    """A live table; validations and messages scroll above it."""

    def __init__(self, console: Console, name: str, pace: Pace) -> None:
        super().__init__(console, pace)
        self._name = name
        self._figures: Figures = {}
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._live.stop()

    def train(self, step: int, figures: Figures) -> None:
        self._figures = figures

    def _render(self) -> Group:
        columns = {
            "step": f"{self._pace.done}/{self._pace.steps}",
            "loss": _loss(self._figures),
            "perplexity": _number(self._figures.get("perplexity"), ".2f"),
            "evaluations": _number(self._figures.get("evaluations"), ".1f"),
            "residual": _number(self._figures.get("residual"), ".1e"),
            "tokens/s": _number(self._figures.get("tokens_per_second"), ",.0f"),
            "time left": self._pace.time_left(),
        }
        width = self._console.width
        for heading in _LEAST_WANTED:
            if _width(columns) > width:
                del columns[heading]
        table = Table(title=Text(self._name), title_justify="left")
        for heading in columns:
            table.add_column(heading, justify="right")
        table.add_row(*columns.values())
        return Group(table, ProgressBar(total=self._pace.steps, completed=self._pace.done, width=min(60, width)))


def _width(columns: Mapping[str, str]) -> int:
    """The width of a table with one row: per column its text, two spaces and a line."""
    return 1 + sum(max(len(heading), len(value)) + 3 for heading, value in columns.items())


def validation_line(step: int, figures: Figures) -> str:
    """The figures of an evaluation in a line."""
    accuracy = "" if figures.get("accuracy") is None else f"accuracy {_number(figures['accuracy'], '.2%')}  "
    return (
        f"step {step}  validation: loss {_loss(figures)}  "
        f"perplexity {_number(figures['perplexity'], '.2f')}  "
        f"{accuracy}"
        f"evaluations {_number(figures['evaluations'], '.1f')}  "
        f"residual {_number(figures['residual'], '.1e')} "
        f"(95% {_number(figures['residual_p95'], '.1e')}, "
        f"worst {_number(figures['residual_worst'], '.1e')})  "
        f"unconverged {_number(figures['unconverged'], '.1%')}"
    )


def _loss(figures: Figures) -> str:
    """Four decimals, or four digits if those would be all zeros."""
    loss = figures.get("loss")
    return _number(loss, ".3e" if isinstance(loss, float) and 0 < abs(loss) < 1e-2 else ".4f")


def _number(value: object, form: str) -> str:
    """A figure, or a dash."""
    return format(value, form) if isinstance(value, int | float) else "-"
