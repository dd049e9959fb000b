"""What every command has in common."""

import errno
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equilibria.cli.app import main
from equilibria.errors import UserError
from processes import environment

COMMANDS = (
    *("train", "eval", "generate", "serve", "report", "runs", "recipes", "init", "plan", "sweep", "doctor"),
    *("import", "export", "bench", "reproduce", "data", "demo"),
)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [*COMMANDS, "data hf", "demo state-tracking", "import gpt2", "import torchdeq-lm", "import torchdeq-seq"]
)
def test_every_command_has_help_whose_usage_has_arguments_before_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    usage = next(line for line in shown.splitlines() if line.startswith("Usage: "))
    assert usage.startswith(f"Usage: equilibria {command}")
    assert "[OPTIONS]" in usage or command in ("init", "bench")
    assert not re.search(r"\[OPTIONS\] [A-Z]", usage)
    assert "default: False" not in shown
    assert "default: None" not in shown


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = "import sys; from equilibria.cli.app import main; main(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("False\n"), "torch was imported; src/equilibria/__init__.py must import it late"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian: no such command; the nearest is train"),
        (["train"], "RECIPE is missing: expected a path"),
        (["eval", "absent"], "there is no run folder absent"),
        (
            ["eval", "r", "--split", "vaild"],
            '--split = "vaild": expected one of "train", "valid", "test"; did you',
        ),
        (["generate", "r", "--top-p", "2"], '--top-p = "2": expected a number <= 1'),
        (["generate", "r", "--sed", "2"], "--sed: no such option; the nearest is --seed"),
        (["report", "absent"], "absent"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


_TRIED = "you tried to allocate"


def _wrapped(problem: Exception) -> UserError:
    error = UserError("a report needs matplotlib, which cannot be loaded")
    error.__cause__ = problem
    return error


@pytest.mark.parametrize(
    ("problem", "wanted"),
    [
        (MemoryError(), ""),
        (RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {_TRIED} 8388608 bytes."), "8388608 bytes"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"), "2.50 GiB"),
        (RuntimeError("unable to mmap 1 bytes from file <x>: Cannot allocate memory (12)"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("libx.so: failed to map segment from shared object"), ""),
        (_wrapped(ImportError("libx.so: failed to map segment from shared object")), ""),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("command", "mend"),
    [
        ("train", "reduce training.batch_size, "),
        ("eval", "reduce --batch-size or --segment-length, or free"),
        ("x", "free"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_reduce(
    command: str,
    mend: str,
    problem: Exception,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise problem

    monkeypatch.setattr("equilibria.cli.app.app", fail)
    assert main([command]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: out of memory{wanted and f' (tried to allocate {wanted} more)'}; {mend}"
    )


def test_any_other_fault_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("equilibria.cli.app.app", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["train"])


def test_memory_that_does_run_out_is_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "large.toml"
    recipe.write_text('[run]\nname = "large"\n[data.tokenizer]\nkind = "bytes"\n[model.cell]\nd_model = 10000000\n')
    command = [sys.executable, "-m", "equilibria", "train", str(recipe)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: out of memory ("), ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_in_an_encoding_that_lacks_a_character_replaces_it(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    monkeypatch.setattr("equilibria.cli.app.app", lambda *arguments, **options: print("caf\u00e9 \u4e2d \udc80"))
    assert main([]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == "caf\u00e9 \u4e2d ?\n".encode(encoding, "replace")


def test_help_in_ascii_is_shown() -> None:
    for setting in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        command = [sys.executable, "-m", "equilibria", "train", "--help"]
        ended = subprocess.run(command, env=environment() | setting, capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert b"Usage" in ended.stdout
