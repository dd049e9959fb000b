"""Every recipe in the checkout can be read, and its model built."""

from pathlib import Path

import pytest
import torch

from equilibria.configuration import build_model, read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def test_there_are_recipes() -> None:
    assert {"demo", "english-4m", "wikitext-2"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_read_and_its_model_built(path: Path) -> None:
    recipe = read_recipe(path)
    with torch.device("meta"):
        model = build_model(recipe, vocabulary_size=1000)
    assert model.cell.d_model == recipe.model.cell.d_model
    assert recipe.run.name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_names_no_place_of_one_machine(path: Path) -> None:
    data = read_recipe(path).data
    assert not any(place.is_absolute() for place in (data.path, data.cache, *data.files) if place is not None)
