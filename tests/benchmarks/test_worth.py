"""`equilibria bench worth`: rows that are trained, read at other lengths and told apart."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor

from benchmarks._worth_studies import STUDIES, Goal, Reading
from benchmarks._worth_table import _cell, right, sheet_of
from benchmarks.worth import parse, recipes_of, trained
from equilibria.cli.app import main
from equilibria.configuration import RunRecipe
from equilibria.configuration.building import build_model
from equilibria.data.prepared import opened
from equilibria.models import TokenModel
from equilibria.training.loop import TrainingLoop

pytestmark = pytest.mark.filterwarnings("ignore::equilibria.ConvergenceWarning")


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_can_be_built_and_read(study: str) -> None:
    """What a goal is read at is something that some row is read at."""
    recipes = recipes_of(parse([study]))
    models = {name: build_model(recipe, opened(recipe.data).vocabulary_size) for name, recipe in recipes.items()}
    assert all(isinstance(model, TokenModel) for model in models.values())
    for goal in STUDIES[study].goals:
        assert any(STUDIES[study].readings[goal.reading].suits(model) for model in models.values())


def test_rows_of_the_same_weights_have_as_many(tmp_path: Path) -> None:
    recipes = recipes_of(parse(["s3"]))
    sizes = {
        name: sum(parameter.numel() for parameter in build_model(recipe, 6).parameters())
        for name, recipe in recipes.items()
    }
    assert sizes["equilibrium"] == sizes["24 times"] == sizes["once"]


def test_a_study_grows_by_rows_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmarks._worth_studies as studies

    study = STUDIES["parity"]
    short = {
        "16": Reading({"valid_length": 16, "held_out": 8}),
        "40 decoded": Reading({"valid_length": 40, "held_out": 8}, chunk_length=1, for_all=False),
    }
    small = type(study)(study.about, study.rows, short, [Goal("16", 0.0)])
    monkeypatch.setitem(studies.STUDIES, "parity", small)  # pyright: ignore[reportArgumentType]
    out, picture = tmp_path / "parity.json", tmp_path / "parity.svg"
    command = ["bench", "worth", "parity", "--steps", "2", "--out", str(out), "--picture", str(picture)]
    assert main([*command, "--seeds", "0", "--rows", "equilibrium"]) == 0
    first = json.loads(out.read_text())["rows"]["equilibrium"]["seeds"]["0"]
    assert main([*command, "--seeds", "0", "1", "--rows", "equilibrium", "24 times", "LSTM"]) == 0
    result = json.loads(out.read_text())
    assert result["rows"]["equilibrium"]["seeds"]["0"] == first  # it was not made again
    assert {name: sorted(row["seeds"]) for name, row in result["rows"].items()} == {
        name: ["0", "1"] for name in ("equilibrium", "24 times", "LSTM")
    }
    assert set(first["readings"]) == set(short)
    assert first["readings"]["16"]["evaluations"]["mean"] > 1
    assert set(result["rows"]["24 times"]["seeds"]["0"]["readings"]) == {"16"}
    assert result["rows"]["24 times"]["seeds"]["0"]["readings"]["16"]["spectral_radius"] is None
    assert right("parity", first)
    assert sheet_of(result).headers == ["", "equilibrium", "24 times", "LSTM"]
    assert "2/2" in capsys.readouterr().out
    assert "24 times" in picture.read_text()


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "worth", "s3", "--rows", "twice"]) == 2
    assert "s3 has no such row; it has equilibrium" in capsys.readouterr().err


def test_a_run_of_another_recipe_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is beside the results file, which may have been removed."""
    out = tmp_path / "s3.json"
    command = ["bench", "worth", "s3", "--rows", "LSTM", "--seeds", "0", "--steps", "1", "--out", str(out)]
    recipe = recipes_of(parse(command[2:]))["LSTM"]
    folder = RunRecipe(name="LSTM-0", directory=tmp_path / "s3-runs")
    trained(replace(recipe, run=folder), Console(quiet=True))
    assert main([*command, "--set", "model.hidden=8"]) == 2
    assert "was run with" in capsys.readouterr().err
    assert main([*command, "--set", "model.hidden"]) == 2
    assert "--set model.hidden: give a key of the recipe and its value" in capsys.readouterr().err


def test_a_row_that_is_interrupted_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s3.json"
    command = ["bench", "worth", "s3", "--rows", "LSTM", "--seeds", "0", "--steps", "4", "--out", str(out)]
    with monkeypatch.context() as patch:
        take = TrainingLoop.step

        def stopping(loop: TrainingLoop) -> Tensor:
            loss = take(loop)
            if loop.done == 3:
                signal.raise_signal(signal.SIGTERM)
            return loss

        patch.setattr(TrainingLoop, "step", stopping)
        assert main(command) == 2
    assert "was interrupted after step 3; the same command goes on" in capsys.readouterr().err
    assert not out.exists()


def test_the_worst_of_a_cost_is_the_most() -> None:
    assert _cell([1.0, 2.0, 90.0], less_is_better=True) == "2.000 (90.000)"
    assert _cell([0.5, 1.0, None, 1.0], less_is_better=False) == "1.000 (0.500)"
    assert _cell([None], less_is_better=False) == "–"
