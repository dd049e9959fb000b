"""`equilibria recipes`, `equilibria init`, and `--dry-run`."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main
from equilibria.configuration import read_recipe, shipped_recipe, shipped_recipes, table_of, write_recipe
from tiny import tiny_recipe


def test_all_are_listed_below_their_folders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split("  ")[0].strip() == "demo"
    below = lines.index(next(line for line in lines if line.strip() == "english-4m/"))
    assert lines[below + 1].split()[:2] == ["default", "The"]
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: it.title for name, it in shipped_recipes().items()}


def test_a_copy_is_the_recipe_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "english-4m/default"]) == 0
    wrote, *about = capsys.readouterr().out.splitlines()
    assert wrote == "wrote default.toml; train it with: equilibria train default.toml"
    assert about == [
        "Its text is to be in data/english-4m: train.txt and valid.txt. Any other text:",
        "equilibria train default.toml --data.source files --data.files TEXT",
    ]
    assert Path("default.toml").read_bytes() == shipped_recipe("english-4m/default").file.read_bytes()
    assert main(["init", "ptb/nas", "mine/nas.toml"]) == 0
    assert table_of(read_recipe("mine/nas.toml")) == table_of(read_recipe("ptb/nas"))
    capsys.readouterr()
    Path("default.toml").write_text("# mine")
    assert main(["init", "laboratory/default"]) == 2
    said = "error: default.toml exists already; name another file: equilibria init laboratory/default FILE\n"
    assert capsys.readouterr().err == said
    assert Path("default.toml").read_text() == "# mine"
    assert main(["init", "nass"]) == 2
    assert "of which ptb/nas is the nearest (" in capsys.readouterr().err
    assert main(["init", "demo", "default.toml/demo.toml"]) == 2
    assert "default.toml/demo.toml cannot be written" in capsys.readouterr().err


def test_a_dry_run_prints_recipe_and_plan_and_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, file = tiny_recipe(tmp_path), tmp_path / "tiny.toml"
    write_recipe(recipe, file)
    assert main(["train", str(file), "--training.steps", "7", "--dry-run"]) == 0
    out = capsys.readouterr().out
    printed, planned = out[: out.index(f"{recipe.run.name} on cpu")], out[out.index(f"{recipe.run.name} on cpu") :]
    (tmp_path / "whole.toml").write_text(printed)
    assert table_of(read_recipe(tmp_path / "whole.toml")) == table_of(read_recipe(file, ["--training.steps", "7"]))
    assert "parameters" in planned
    assert main(["train", str(file), "--dry-run", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["recipe"]["run"] == table_of(recipe)["run"]

    assert not recipe.run.folder.exists()
    assert main(["train", str(file), "--dry-run", "--resume"]) == 2
    assert "--dry-run trains nothing, so --resume has no effect; drop one of them" in capsys.readouterr().err
