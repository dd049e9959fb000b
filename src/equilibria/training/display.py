"""The display of training: a live table on a terminal, plain lines elsewhere."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Figures = Mapping[str, object]

_LEAST_WANTED = ("perplexity", "residual", "tokens/s", "evaluations", "validation", "time left", "loss")
"""Columns to drop on a narrow terminal, in this order."""

_LEAST_SAID = ("residual", "evaluations", "perplexity", "unconverged", "accuracy")
"""The same of a line about a validation."""


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
    """Shows the progress of a training, and is the `Progress` of the evaluations in it. `train` and `valid` take the
    figures of the metrics lines."""

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

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        """Long work between two steps, as of `Progress`."""
        del sentence, total, unit
        yield lambda amount: None

    def say(self, sentence: str) -> None:
        """A message."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)


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


@dataclass
class _Work:
    """Work between two steps."""

    sentence: str
    total: int | None
    done: int = 0

    def advance(self, amount: int) -> None:
        self.done += amount


class LiveDisplay(Display):
    """A live table; validations and messages scroll above it."""

    def __init__(self, console: Console, name: str, pace: Pace) -> None:
        super().__init__(console, pace)
        self._name = name
        self._figures: Figures = {}
        self._validation: Figures = {}
        self._work: _Work | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._live.stop()

    def train(self, step: int, figures: Figures) -> None:
        self._figures = figures

    def valid(self, step: int, figures: Figures) -> None:
        self._validation = figures
        self.say(validation_line(step, figures, self._console.width))

    @contextmanager
    def bar(self, sentence: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        self._work = _Work(sentence, total)
        try:
            yield self._work.advance
        finally:
            self._work = None

    def _render(self) -> Group:
        width = self._console.width
        columns = _fitting(
            {
                "step": f"{self._pace.done}/{self._pace.steps}",
                "loss": _loss(self._figures),
                "validation": _loss(self._validation),
                "perplexity": _number(self._figures.get("perplexity"), ".2f"),
                "evaluations": _number(self._figures.get("evaluations"), ".1f"),
                "residual": _number(self._figures.get("residual"), ".1e"),
                "tokens/s": _number(self._figures.get("tokens_per_second"), ",.0f"),
                "time left": self._pace.time_left(),
            },
            _LEAST_WANTED,
            lambda shown: sum(max(len(heading), len(value)) + 2 for heading, value in shown.items()) <= width,
        )
        table = Table(title=Text(self._name), title_justify="left", box=None, header_style="bold")
        for heading in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_row(*columns.values())
        bar = ProgressBar(total=self._pace.steps, completed=self._pace.done, width=min(60, width))
        return Group(table, *([] if self._work is None else [_row(self._work, min(60, width))]), bar)


def _row(work: _Work, width: int) -> Table:
    """What work is done, and how much of it."""
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=work.total, completed=work.done, width=max(1, width - len(work.sentence) - 2), pulse=work.total is None
    )
    row.add_row(Text(work.sentence), bar)
    return row


def validation_line(step: int, figures: Figures, width: int | None = None) -> str:
    """The figures of an evaluation in a line; those that have room in a width."""
    before = f"step {step}  validation: "
    parts = {
        "loss": f"loss {_loss(figures)}",
        "perplexity": f"perplexity {_number(figures['perplexity'], '.2f')}",
        "accuracy": f"accuracy {_number(figures.get('accuracy'), '.2%')}",
        "evaluations": f"evaluations {_number(figures['evaluations'], '.1f')}",
        "residual": f"residual {_number(figures['residual'], '.1e')} "
        f"(95% {_number(figures['residual_p95'], '.1e')}, worst {_number(figures['residual_worst'], '.1e')})",
        "unconverged": f"unconverged {_number(figures['unconverged'], '.1%')}",
    }
    if figures.get("accuracy") is None:
        del parts["accuracy"]
    shown = _fitting(parts, _LEAST_SAID, lambda kept: width is None or len(before + "  ".join(kept.values())) <= width)
    return before + "  ".join(shown.values())


def _fitting(
    parts: Mapping[str, str], least_wanted: Sequence[str], fits: Callable[[Mapping[str, str]], bool]
) -> Mapping[str, str]:
    """The parts without those that are least wanted, until the others fit."""
    kept = dict(parts)
    for name in least_wanted:
        if fits(kept):
            break
        kept.pop(name, None)
    return kept


def _loss(figures: Figures) -> str:
    """Four decimals, or four digits if those would be all zeros."""
    loss = figures.get("loss")
    return _number(loss, ".3e" if isinstance(loss, float) and 0 < abs(loss) < 1e-2 else ".4f")


def _number(value: object, form: str) -> str:
    """A figure, or a dash."""
    return format(value, form) if isinstance(value, int | float) else "-"
