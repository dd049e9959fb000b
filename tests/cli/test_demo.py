"""`equilibria demo` and `report`, on the smallest run."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main
from equilibria.configuration import write_recipe
from tiny import tiny_task_recipe


def test_it_ends_with_the_figures(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.name", "demo", "--training.steps", "4"]
    assert main(["demo", str(tiny_toml), *flags]) == 0
    shown = capsys.readouterr().out
    for name in (
        "validation perplexity",
        "unigram",
        "trigram",
        "after one application",
        "evaluations per token",
        "evaluations per solve",
        "residual",
        "spectral radius",
        "tokens per",
    ):
        assert name in shown
    assert main(["demo", str(tiny_toml), *flags, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert Path(figures["run"]).name == "demo-2"
    assert 1 < figures["trigram_perplexity"] < figures["unigram_perplexity"] < 256
    assert figures["perplexity"] > 1
    assert 1 <= figures["evaluations_median"] <= figures["evaluations_p90"]
    assert main(["eval", figures["run"], "--applications", "1", "--json"]) == 0
    assert figures["perplexity_once"] == json.loads(capsys.readouterr().out)["perplexity"]
    assert figures["sample"]
    assert Path(figures["report"]).is_file()


def test_an_explicit_model_has_no_rows_of_solves(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.name", "explicit", "--training.steps", "2", "--model.depth.kind", "stack"]
    assert main(["demo", str(tiny_toml), *flags, "--model.depth.layers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "trigram" in shown
    assert "tokens per" in shown
    for name in ("evaluations per", "after one application", "residual reached", "spectral radius", "answers"):
        assert name not in shown


@pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")
def test_a_task_is_put_beside_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tiny_task_recipe(tmp_path), tmp_path / "task.toml")
    assert main(["demo", str(tmp_path / "task.toml"), "--training.steps", "2"]) == 0
    shown = capsys.readouterr().out
    for name in (
        "validation loss",
        "without memory",
        "answers",
        "at the last position",
        "answers after one application",
        "evaluations per solve",
        "report",
    ):
        assert name in shown
    for name in ("validation perplexity", "unigram"):
        assert name not in shown


def test_report_prints_its_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_an_unknown_flag(tiny_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tiny_toml), "--training.stepz", "4"]) == 2
    assert "--training.stepz: no such key; the nearest is" in capsys.readouterr().err
