"""What every command has in common."""

import subprocess
import sys

import pytest

from equilibria.cli.app import main

COMMANDS = ("train", "eval", "generate", "report", "bench", "data", "demo", "doctor", "plan", "sweep")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Usage: equilibria {command}" in capsys.readouterr().out


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = "import sys; from equilibria.cli.app import main; main(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("False\n"), "torch was imported; src/equilibria/__init__.py must import it late"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'Unknown command "trian". Did you mean "train"?'),
        (["train"], "RECIPE is missing: expected a path"),
        (["eval", "absent"], "there is no run folder absent"),
        (
            ["eval", "r", "--split", "vaild"],
            '--split = "vaild": expected one of "valid", "test", "train"; did you',
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
