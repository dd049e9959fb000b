"""`equilibria bench models`, on recipes of the smallest models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import stand_ins
from equilibria.cli.app import main
from equilibria.training.loop import TrainingLoop


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return stand_ins.write_checkout(tmp_path)


def bench(recipes: Path, out: str, *flags: str, code: int = 0) -> dict[str, Any]:
    file = recipes / out
    command = ["bench", "models", "--recipes", str(recipes), "--seeds", "0", "--out", str(file), *flags]
    assert main(command) == code
    return json.loads(file.read_text())


def losses(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: {seed: run["loss"] for seed, run in row["seeds"].items()} for name, row in result["rows"].items()}


def stop(patch: pytest.MonkeyPatch, before: int) -> None:
    """Ctrl-C comes before the step of that number, counted over all models."""
    take, taken = TrainingLoop.step, []

    def taking(loop: TrainingLoop) -> Tensor:
        if len(taken) + 1 == before:
            raise KeyboardInterrupt
        taken.append(loop)
        return take(loop)

    patch.setattr(TrainingLoop, "step", taking)


def test_every_recipe_is_a_row(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(recipes, "whole.json", "--seeds", "0", "1", "--evaluate-tokens", "150")
    assert result["rows"].keys() == {"equilibrium", "explicit"}
    assert [row["steps"] for row in result["rows"].values()] == [12, 12]
    assert result["data"] == "text"
    equilibrium, explicit = (result["rows"][name]["seeds"] for name in ("equilibrium", "explicit"))
    assert equilibrium.keys() == {"0", "1"}
    assert equilibrium["0"]["loss"] != equilibrium["1"]["loss"]
    assert equilibrium["0"]["saved_bytes"] < explicit["0"]["saved_bytes"] / 2
    assert equilibrium["0"]["evaluations_per_solve"] > 1
    assert explicit["0"]["residual"] is None
    assert explicit["0"]["training_seconds_per_token"] > 0
    assert equilibrium["0"]["size"]["total"] - equilibrium["0"]["size"]["inner"] == 256 * 16
    best, worst = sorted(result["rows"], key=lambda name: sum(losses(result)[name].values()))
    shown = capsys.readouterr().out.partition("12 steps, 384 tokens")[2]
    assert shown.index(best) < shown.index(worst)
    assert (recipes / "whole.md").read_text().count("(2) |") == 2
    assert not list(recipes.glob("whole.json.checkpoints*"))


def test_a_model_does_not_notice_its_neighbours(recipes: Path) -> None:
    """Dropout is on: each draws its own random numbers."""
    beside = losses(bench(recipes, "beside.json"))
    for name in beside:
        alone = losses(bench(recipes, f"{name}.json", "--rows", name))
        assert alone[name] == beside[name]


@pytest.mark.parametrize("before", [2, 10, 15])
def test_an_interrupted_benchmark_goes_on(recipes: Path, before: int) -> None:
    whole = losses(bench(recipes, "whole.json"))
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, before)
        bench(recipes, "stopped.json", "--checkpoint-every", "4", code=130)
    with pytest.MonkeyPatch.context() as patch:
        left = 24 - 2 * (4 * ((before - 1) // 8)) + 1
        stop(patch, left)  # one more than are left to take
        assert losses(bench(recipes, "stopped.json", "--checkpoint-every", "4")) == whole


def test_a_model_that_is_behind_catches_up(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the checkpoints of two models."""
    whole = losses(bench(recipes, "whole.json"))
    with monkeypatch.context() as patch:
        stop(patch, 15)
        bench(recipes, "stopped.json", "--checkpoint-every", "4", code=130)
    behind = recipes / "stopped.json.checkpoints-0" / "explicit" / "checkpoints"
    shutil.rmtree(behind)
    assert losses(bench(recipes, "stopped.json", "--checkpoint-every", "4")) == whole


def test_what_was_measured_is_not_trained_again(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(recipes, "kept.json", "--rows", "explicit")
    with monkeypatch.context() as patch:
        stop(patch, 1)
        assert bench(recipes, "kept.json", "--rows", "explicit")["rows"] == first["rows"]
    both = bench(recipes, "kept.json")
    assert both["rows"]["explicit"] == first["rows"]["explicit"]
    assert both["rows"]["equilibrium"]["seeds"].keys() == {"0"}
    with monkeypatch.context() as patch:
        stop(patch, 13)
        more = bench(recipes, "kept.json", "--rows", "explicit", "--seeds", "0", "1")
    assert {name: row["seeds"].keys() for name, row in more["rows"].items()} == {
        "explicit": {"0", "1"},
        "equilibrium": {"0"},
    }


def test_results_of_other_recipes_are_not_mixed(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bench(recipes, "kept.json")
    assert bench(recipes, "kept.json", "--steps", "9", code=2) == before
    assert "kept.json was made with another equilibrium; remove it" in capsys.readouterr().err
    file = recipes / "explicit.toml"
    file.write_text(file.read_text().replace("applications = 8", "applications = 9"))
    assert bench(recipes, "kept.json", code=2) == before
    assert "kept.json was made with another explicit; remove it" in capsys.readouterr().err


def test_what_cannot_be(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "models", "--recipes", str(recipes), "--out", str(recipes / "none.json")]
    assert main([*command, "--rows", "other"]) == 2
    assert "--rows other" in capsys.readouterr().err
    assert main([*command, "--recipes", str(recipes / "empty")]) == 2
    assert "there is no recipe in" in capsys.readouterr().err
    file = recipes / "explicit.toml"
    text = file.read_text()
    file.write_text(text.replace("batch_size = 2", "batch_size = 3"))
    assert main(command) == 2
    assert "equilibrium and explicit differ" in capsys.readouterr().err
    file.write_text(text.replace("steps = 12", "steps = 13"))
    assert main(command) == 2
    assert "[12, 13]; give one with --steps" in capsys.readouterr().err
    (recipes / "none.json").write_text("{")
    assert main([*command, "--rows", "explicit"]) == 2
    assert "none.json is damaged" in capsys.readouterr().err
