"""Whether a run was trained with a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from equilibria.configuration import RunRecipe
from equilibria.configuration.comparing import differences, run_difference
from tiny import tiny_recipe, with_data


def test_the_place_of_a_run_and_the_spelling_of_a_path_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    moved = with_data(recipe, path=Path("text"), cache=Path("runs/../cache"))
    other = replace(moved, run=RunRecipe(name="other", directory=Path("runs")))
    assert run_difference(recipe, other) == ""
    elsewhere = with_data(other, path=Path("elsewhere"))
    assert run_difference(recipe, elsewhere) == f'data.path = "{tmp_path}/text", not "{tmp_path}/elsewhere"'
    longer = replace(other, training=replace(recipe.training, steps=13))
    assert run_difference(recipe, longer) == "training.steps = 12, not 13"


def test_numbers_that_are_the_same_make_no_difference() -> None:
    before = {"whole": 1, "no_number": float("nan"), "changed": 0.5}
    now = {"whole": 1.0, "no_number": float("nan"), "changed": float("nan")}
    assert list(differences(before, now)) == [("changed", "0.5", "NaN")]
