"""`equilibria demo` and `report`, on the smallest run."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main


def test_it_ends_with_the_figures(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.name", "demo", "--training.steps", "4"]
    assert main(["demo", str(tiny_toml), *flags]) == 0
    shown = capsys.readouterr().out
    for name in (
        "validation perplexity",
        "unigram",
        "trigram",
        "evaluations per solve",
        "residual",
        "tokens per",
    ):
        assert name in shown
    assert main(["demo", str(tiny_toml), *flags, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert Path(figures["run"]).name == "demo-2"
    assert 1 < figures["trigram_perplexity"] < figures["unigram_perplexity"] < 256
    assert figures["perplexity"] > 1
    assert figures["sample"]
    assert Path(figures["report"]).is_file()


def test_report_prints_its_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_an_unknown_flag(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tiny_toml), "--training.stepz", "4"]) == 2
    assert "--training.stepz: no such option" in capsys.readouterr().err
