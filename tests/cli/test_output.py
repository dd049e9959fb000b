"""What a command does when nobody reads what it prints, or it cannot be written: real pipes, and a full disk."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from equilibria.cli.app import main
from equilibria.cli.output import GuardedStream
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics

Redirect = Callable[[str, str], None]


def closed_pipe() -> TextIO:
    read, write = os.pipe()
    os.close(read)
    return open(write, "w", encoding="utf-8")


def full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


@pytest.fixture
def redirect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Redirect]:
    """Sends a standard stream to where it cannot be written."""
    opened: list[TextIO] = []

    def sent(stream: str, where: str) -> None:
        opened.append({"pipe": closed_pipe, "full": full_disk}[where]())
        monkeypatch.setattr(sys, stream, opened[-1])

    yield sent
    for stream in opened:
        stream.close()  # what is left in it goes nowhere by now


def weights(folder: Path) -> bytes:
    return (RunFolder(folder).checkpoint("last") / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("where", "why"), [("pipe", "Broken pipe"), ("full", "No space left on device")])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_training_goes_on_without_its_audience(
    run: Path,
    tiny_toml: Path,
    redirect: Redirect,
    capsys: pytest.CaptureFixture[str],
    where: str,
    why: str,
    flags: list[str],
) -> None:
    redirect("stdout", where)
    name = f"unheard-{where}{''.join(flags)}"
    assert main(["train", str(tiny_toml), "--run.name", name, *flags]) == 0
    said = capsys.readouterr().err
    assert said.count(f"warning: standard output cannot be written ({why}); continuing without it\n") == 1
    folder = run.with_name(name)
    assert weights(folder) == weights(run)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"] == [3, 6, 9, 12]


def test_training_goes_on_where_not_even_that_can_be_said(run: Path, tiny_toml: Path, redirect: Redirect) -> None:
    redirect("stdout", "pipe")
    redirect("stderr", "full")
    assert main(["train", str(tiny_toml), "--run.name", "deaf"]) == 0
    assert weights(run.with_name("deaf")) == weights(run)


def test_a_sweep_goes_on(tiny_toml: Path, redirect: Redirect) -> None:
    redirect("stdout", "pipe")
    sweep = ["sweep", str(tiny_toml), "--run.name", "unheard", "--training.seed", "1,2", "--training.steps", "2"]
    assert main(sweep) == 0
    runs = tiny_toml.parent / "runs" / "unheard"
    assert all(RunFolder(runs / f"seed={seed}").checkpoint("last").name == "step-2" for seed in (1, 2))
    assert not list(runs.glob("*.failed"))


@pytest.mark.parametrize("arguments", [["generate"], ["eval"], ["report"], ["eval", "--json"]])
def test_a_command_that_nobody_reads_ends_quietly(
    run: Path, redirect: Redirect, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    redirect("stdout", "pipe")
    assert main([arguments[0], str(run), *arguments[1:]]) == 141
    assert capsys.readouterr().err.count("\n") <= 2  # progress, and no traceback


def test_an_evaluation_that_cannot_be_printed_is_kept(
    run: Path, redirect: Redirect, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluation.json").unlink(missing_ok=True)
    redirect("stdout", "full")
    assert main(["eval", str(run), "--json"]) == 2
    assert capsys.readouterr().err.endswith("error: standard output cannot be written (No space left on device)\n")
    assert json.loads((run / "evaluation.json").read_text())["split"] == "valid"


def test_an_error_is_an_error_without_a_reader_too(redirect: Redirect) -> None:
    redirect("stderr", "pipe")
    assert main(["eval", "absent"]) == 2


def test_a_stream_fails_once(redirect: Redirect) -> None:
    redirect("stdout", "full")
    problems: list[OSError] = []
    output = GuardedStream(sys.stdout, problems.append)
    for _ in range(3):
        assert output.write("x") == 1
        output.flush()
    assert [problem.strerror for problem in problems] == ["No space left on device"]
    assert not output.isatty()
