"""Recipes by name."""

from pathlib import Path

import pytest

from equilibria.configuration import read_recipe, shipped_recipe, shipped_recipes
from equilibria.configuration.shipped import FOLDER, recipe_file
from equilibria.errors import UserError


def test_every_file_has_a_name_and_a_title() -> None:
    recipes = shipped_recipes()
    assert len(recipes) == len(list(FOLDER.rglob("*.toml"))) > 60
    assert recipes["demo"].file == FOLDER / "demo.toml"
    assert shipped_recipe("english-4m/default").title.startswith("The model to start from")


def test_a_file_that_exists_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file("demo") == FOLDER / "demo.toml"
    Path("demo").mkdir()  # a folder of that name is no recipe
    assert recipe_file("demo") == FOLDER / "demo.toml"
    Path("demo").rmdir()
    Path("demo").write_text((FOLDER / "reversal.toml").read_text())
    assert recipe_file(Path("demo")) == Path("demo")
    assert read_recipe("demo").run.name == "reversal"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("demmo", "demo"),
        ("default", "english-4m/default"),
        ("english-4m/defualt", "english-4m/default"),
        ("recipes/english-4m/default.toml", "english-4m/default"),
        ("deq-trellisnet", "english-4m/deq-trellisnet"),
        ("ptb/deq-trelisnet.toml", "ptb/deq-trellisnet"),
    ],
)
def test_what_is_neither_is_said_with_the_nearest_name(given: str, nearest: str) -> None:
    said = rf"^{given} does not exist; a recipe .* one of the package, of which {nearest} is the nearest \("
    with pytest.raises(UserError, match=said):
        read_recipe(given)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder without a run; a recipe is a TOML file, or one of the package"):
        read_recipe(tmp_path)
    with pytest.raises(
        UserError, match=r"no recipe demo.toml; name one of the package, of which demo is the nearest \("
    ):
        shipped_recipe("demo.toml")
    with pytest.raises(UserError, match=r"^there is no recipe 0; name one of the package \(`equilibria recipes`"):
        shipped_recipe("0")
