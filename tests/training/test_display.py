import io
import re

import pytest
from rich.console import Console

from equilibria.training.display import LiveDisplay, Pace, PlainDisplay, display

TRAIN = {
    "loss": 2.0,
    "perplexity": 7.389,
    "evaluations": 6.0,
    "residual": 0.0123,
    "tokens_per_second": 4321.0,
}
VALID = {
    "loss": 2.5,
    "perplexity": 12.18,
    "evaluations": 9.0,
    "residual": None,
    "residual_p95": 0.1,
    "residual_worst": 0.2,
    "unconverged": 0.5,
}


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=120), stream


def test_plain_lines_where_the_output_is_no_terminal() -> None:
    where, stream = console(terminal=False)
    shown = display(where, "run", steps=100, done=0)
    assert isinstance(shown, PlainDisplay)
    with shown:
        shown.advance(10)
        shown.train(10, TRAIN)
        shown.valid(10, VALID)
        shown.say("saved [at step 10]")
    first, second, third = stream.getvalue().splitlines()
    for part in (
        "step 10/100",
        "loss 2.0000",
        "perplexity 7.39",
        "evaluations 6.0",
        "residual 1.2e-02",
        "4,321",
    ):
        assert part in first
    assert "left" in first
    assert "validation: loss 2.5000" in second
    assert "residual - (95% 1.0e-01, worst 2.0e-01)" in second
    assert third == "saved [at step 10]"
    assert "\x1b" not in stream.getvalue()


def test_a_live_table_on_a_terminal() -> None:
    where, stream = console(terminal=True)
    shown = display(where, "run", steps=100, done=0)
    assert isinstance(shown, LiveDisplay)
    with shown:
        shown.advance(10)
        shown.train(10, TRAIN)
        shown.valid(10, VALID)
    for part in ("10/100", "2.0000", "tokens/s", "time left", "validation"):
        assert part in stream.getvalue()


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (20, ("10/100", "2.0000"), ("time left", "evaluations")),
        (40, ("10/100", "2.0000", "time left", "validation"), ("perplexity", "tokens/s")),
        (60, ("evaluations", "validation"), ("perplexity", "residual")),
        (80, ("validation", "2.5000", "1.2e-02", "4,321"), ("perplexity  evaluations",)),
        (120, ("perplexity", "1.2e-02", "4,321"), ()),
    ],
)
def test_a_narrow_terminal_goes_without_columns(width: int, shown: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    stream = io.StringIO()
    where = Console(file=stream, force_terminal=True, width=width)
    with display(where, "run", steps=100, done=0) as table:
        table.advance(10)
        table.train(10, TRAIN)
        table.valid(10, VALID)
        with table.bar("evaluating", 10, "batches") as advance:
            advance(5)
    text = stream.getvalue()
    assert all(part in text for part in shown)
    assert not any(part in text for part in left_out)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()
    assert max(len(line.rpartition("\r")[2]) for line in lines) <= width


def test_small_losses_keep_their_digits_and_answers_are_counted() -> None:
    where, stream = console(terminal=False)
    with display(where, "run", steps=100, done=0) as shown:
        shown.train(10, {**TRAIN, "loss": 3.25e-6})
        shown.valid(10, {**VALID, "loss": 0.0, "accuracy": 0.98765})
        shown.valid(10, {**VALID, "loss": 0.0123, "accuracy": None})
    first, second, third = stream.getvalue().splitlines()
    assert "loss 3.250e-06  perplexity" in first
    assert "loss 0.0000  perplexity 12.18  accuracy 98.77%  evaluations" in second
    assert "loss 0.0123  perplexity 12.18  evaluations" in third


def test_time_left_follows_the_pace_of_this_process() -> None:
    pace = Pace(steps=100, first=40)
    assert pace.time_left() == "?"
    pace.done = 50
    pace.started -= 60.0
    assert pace.time_left() == "0:05:00"
