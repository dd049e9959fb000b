"""`equilibria bench`."""

from pathlib import Path

import pytest

from equilibria.cli.app import main

BENCHMARK = """
from dataclasses import dataclass

@dataclass
class Result:
    arguments: list[str]

def main(arguments: list[str]) -> int:
    print(Result(arguments))
    return 3
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text(BENCHMARK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_and_exit_code_are_passed_on(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "--json", "--steps", "3"]) == 3
    assert capsys.readouterr().out == "Result(arguments=['--json', '--steps', '3'])\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_that_of_the_benchmark_or_without_a_name_our_own(
    flag: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speed", flag]) == 3
    assert capsys.readouterr().out == f"Result(arguments=['{flag}'])\n"
    assert main(["bench", flag]) == 0
    shown = capsys.readouterr().out
    assert "Usage: equilibria bench [NAME]" in shown
    assert "NAME --help says what it takes" in shown


def test_the_nearest_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sped"]) == 2
    said = "error: there is no benchmark sped; the nearest is speed, and there are accelerator, bank, "
    assert capsys.readouterr().err.startswith(said)


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("equilibria.cli.bench._CHECKOUTS", (tmp_path,))
    assert main(["bench", "twin"]) == 2
    assert "run this in a checkout" in capsys.readouterr().err
