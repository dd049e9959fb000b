"""Long work, shown on a real terminal of 80 columns, and as plain lines elsewhere."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from equilibria.cli.progress import ConsoleProgress, progress_console, side_console
from processes import environment

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(*arguments: str, columns: int = 80) -> list[str]:
    """The lines that a command writes to a terminal, as they were before others took their place."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "equilibria", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables | {"TERM": "xterm"},
    ) as process:
        os.close(theirs)
        written = b""
        while part := _read(ours):
            written += part
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return _CODES.sub("", written.decode()).replace("\r", "\n").splitlines()


def _read(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except OSError:  # Linux says so that the other end has been closed
        return b""


def test_training_fits_eighty_columns_and_ends_with_what_to_do_next(tiny_toml: Path) -> None:
    lines = on_a_terminal("train", str(tiny_toml), "--run.name", "seen")
    folder = tiny_toml.parent / "runs" / "seen"
    heading = next(line for line in reversed(lines) if line.split()[:1] == ["step"])
    assert heading.split()[:3] == ["step", "loss", "validation"]
    tables = [line for line in lines if str(tiny_toml.parent) not in line]
    assert max(map(len, tables)) <= 80
    assert any(re.match(r"step 12  validation: loss \d", line) for line in lines)
    at = next(number for number, line in enumerate(lines) if line.startswith("the run is in"))
    ending = "".join(lines[at:]).replace(" ", "")
    for command in ("eval", "generate", "report"):
        assert f"equilibria{command}{folder}" in ending


def test_evaluation_has_a_bar_on_a_terminal(run: Path) -> None:
    lines = on_a_terminal("eval", str(run))
    assert any(re.search(r"^evaluating .* \d+/\d+ batches", line) for line in lines)


def test_elsewhere_there_are_lines_for_data_alone() -> None:
    stream = StringIO()
    progress = ConsoleProgress(Console(file=stream))
    for sentence, unit in (("encoding", "bytes"), ("evaluating", "batches")):
        with progress.bar(sentence, 10, unit) as advance:
            advance(5)
    assert stream.getvalue() == "encoding\n"


@pytest.mark.parametrize("unit", ["bytes", "batches"])
@pytest.mark.parametrize("total", [None, 10])
def test_a_bar_leaves_what_is_printed_beside_it(
    unit: str, total: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(stderr=True, force_terminal=True)
    with ConsoleProgress(console).bar("work", total, unit) as advance:
        print("a figure")
        advance(10)
    printed = capsys.readouterr()
    assert printed.out == "a figure\n"
    assert "work" in printed.err


def test_json_has_no_bars() -> None:
    assert not progress_console(json=True).is_terminal
    assert progress_console(json=True).stderr
    assert side_console(json=True).quiet
