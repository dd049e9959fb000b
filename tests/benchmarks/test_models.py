"""`equilibria bench models`: rows of a folder of recipes on the same batches."""

import json
from pathlib import Path

import pytest

from equilibria.cli.app import main

RECIPE = """
[run]
name = "{name}"

[data]
source = "folder"
path = "{text}"
tokenizer = "bytes"

[model.cell]
d_model = 8
heads = 1
inner = 8

[model.depth]
{depth}

[training]
steps = {steps}
batch_size = 2
segment_length = 8
evaluate_tokens = 64
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid"):
        (text / f"{split}.txt").write_text("some words again and again\n" * 40)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name, depth in (("default", 'kind = "equilibrium"'), ("twin", 'kind = "unrolled"\napplications = 3')):
        (recipes / f"{name}.toml").write_text(RECIPE.format(name=name, text=text, depth=depth, steps=4))
    return ["bench", "models", "--recipes", str(recipes), "--out", str(tmp_path / "models.json")]


def rows_of(command: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    return {name: row["seeds"] for name, row in json.loads(Path(command[-1]).read_text())["rows"].items()}


def test_seeds_that_are_there_are_kept_and_others_are_added(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command[:-2], "--seeds", "1", *command[-2:]]) == 0
    first = rows_of(command)
    assert {name: list(seeds) for name, seeds in first.items()} == {"default": ["1"], "twin": ["1"]}
    assert main([*command[:-2], "--seeds", "0", "1", *command[-2:]]) == 0
    both = rows_of(command)
    assert all(set(both[name]) == {"0", "1"} and both[name]["1"] == first[name]["1"] for name in both)
    assert both["default"]["0"]["loss"] != both["default"]["1"]["loss"]
    assert both["default"]["1"]["residual"] is not None
    assert both["twin"]["1"]["residual"] is None
    assert "4 steps, 64 tokens" in capsys.readouterr().out


def test_rows_that_would_not_see_the_same_batches_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    twin = Path(command[3]) / "twin.toml"
    twin.write_text(twin.read_text().replace("steps = 4", "steps = 5"))
    assert main(command) == 2
    assert "default and twin differ in [data], steps" in capsys.readouterr().err
    assert not Path(command[-1]).exists()
