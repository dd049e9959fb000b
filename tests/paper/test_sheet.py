"""Tables of text."""

import io

import pytest
from rich.console import Console

from equilibria.measuring.size import Size
from equilibria.measuring.spread import Quartiles
from equilibria.paper import published
from equilibria.paper.contests import MemoryCost, Runtime
from equilibria.paper.sheet import Sheet, count, form
from equilibria.paper.tables import MeasuredTable, TrainedTable
from equilibria.paper.writing import RowResult, memory_sheet, runtime_sheet, trained_sheet

FIGURES = {
    "data": "wikitext-103",
    "split": "test",
    "loss": 0.0501,
    "perplexity": 1234.56,
    "residual": {"mean": 1.2e-3},
    "evaluations_per_solve": 29.9,
}


def lines_of(sheet: Sheet) -> list[str]:
    stream = io.StringIO()
    sheet.show(Console(file=stream, width=80))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("table", published.TRAINED.values(), ids=lambda table: table.name)
def test_every_trained_table_is_readable_at_80_columns(table: TrainedTable) -> None:
    outcomes = [RowResult(row, Size(109_900_000, 69_750_000), FIGURES) for row in table.rows]
    lines = lines_of(trained_sheet(table, "tiny", outcomes))
    figure = "0.0501" if table.figure == "loss" else "1,234.6"
    shown = [line for line in lines if figure in line and "1e-03" in line and "29.9" in line]
    assert len(shown) >= len(table.rows)
    assert all(len(line.split("110M")[0]) >= 15 for line in shown)  # room for the names
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_measured_tables_are_readable_at_80_columns() -> None:
    def rows(table: MeasuredTable) -> list:
        return [list(contest.rows) for contest in table.contests]

    size, times = Size(10**8, 69_750_000), Quartiles(12.34, 11.11, 13.13)
    costs = [
        [MemoryCost(row, size, 24_700_000_000, 34_700_000_000, 0.1234, 0.9876) for row in contest]
        for contest in rows(published.MEMORY)
    ]
    lines = lines_of(memory_sheet(published.MEMORY, "full", costs))
    assert sum("24.7GB   0.12  34.7GB   0.99" in line for line in lines) >= 12
    found = [
        [Runtime(row, size, True, times, times, times, times) for row in contest] for contest in rows(published.RUNTIME)
    ]
    pairs = list(zip(published.RUNTIME.contests, found, strict=True))
    lines += lines_of(runtime_sheet(published.RUNTIME, "full", pairs))
    assert sum(line.count("12.34 (11.11–13.13)") == 2 for line in lines) == 4
    assert sum("2.82" in line and "1.76" in line for line in lines) == 1
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_markdown() -> None:
    sheet = Sheet("A title", ["model", "figure"], [["one", "1"], ["two", "–"]], ["Said.", "Also."])
    assert sheet.markdown() == (
        "# A title\n\n| model | figure |\n| --- | ---: |\n| one | 1 |\n| two | – |\n\n- Said.\n- Also.\n"
    )


def test_numbers() -> None:
    assert [count(number) for number in (None, 14e3, 4.9e6, 267_735, 1e9, 12)] == [
        "–",
        "14K",
        "4.9M",
        "268K",
        "1G",
        "12",
    ]
    assert [form(None, ".1f"), form(0.0, ".1f"), form(3.5e-6, ".3g")] == ["–", "0.0", "3.5e-06"]


def test_a_note_is_said_once() -> None:
    table = published.COPY_MEMORY
    notes = ["why", "", "why", "else"]
    outcomes = [RowResult(row, Size(14_000, 13_000), None, note) for row, note in zip(table.rows, notes, strict=True)]
    assert trained_sheet(table, "full", outcomes).notes[-2:] == ["deq-transformer, lstm: why.", "gru: else."]
