"""From flags to the recipes of a sweep."""

from pathlib import Path

import pytest

from equilibria.configuration import Recipe, write_recipe
from equilibria.configuration.comparing import settings
from equilibria.data import Source
from equilibria.errors import UserError
from equilibria.optimization import SGD, Muon
from equilibria.sweep.grid import Axis, read_grid, short_keys
from tiny import tiny_recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_recipe(tiny_recipe(tmp_path), tmp_path / "tiny.toml")
    return tmp_path / "tiny.toml"


def test_commas_make_an_axis_and_the_rest_is_fixed() -> None:
    grid = read_grid(
        ["--training.seed", "0,1", "--training.steps=5", "--data.files", "a", "b", "--training.clip=1,0.5", "--x"]
    )
    assert grid.axes == (Axis("training.seed", ("0", "1")), Axis("training.clip", ("1", "0.5")))
    assert grid.fixed == ("--training.steps=5", "--data.files", "a", "b", "--x")


def test_every_combination_once_the_last_axis_fastest(file: Path, tmp_path: Path) -> None:
    flags = ["--training.seed", "0,1", "--training.steps", "5", "--training.learning_rate", "1e-3,3e-3"]
    recipes = read_grid(flags).recipes(file)

    def said(recipe: Recipe) -> tuple[int, float, int]:
        return recipe.training.seed, recipe.training.learning_rate, recipe.training.steps

    assert [said(recipe) for recipe in recipes] == [(0, 1e-3, 5), (0, 3e-3, 5), (1, 1e-3, 5), (1, 3e-3, 5)]
    assert recipes[1].run.folder == tmp_path / "runs" / "tiny" / "seed=0,learning_rate=3e-3"


def test_names_and_folders(file: Path, tmp_path: Path) -> None:
    first, _ = read_grid(["--model.cell.dropout=0,0.5", "--run.name=other"]).recipes(file)
    assert first.run.folder == tmp_path / "runs" / "other" / "dropout=0"
    *_, last = read_grid(["--model.cell.dropout=0,0.5", "--model.dropout=0,0.1"]).recipes(file)
    assert last.run.name == "model.cell.dropout=0.5,model.dropout=0.1"
    cache, _ = read_grid([f"--data.cache={tmp_path}/a,b"]).recipes(file)
    assert "/" not in cache.run.name
    assert short_keys(["a.b", "c.b", "c.d"]) == ["a.b", "c.b", "d"]


def test_a_yes_or_no_is_swept_and_set(file: Path) -> None:
    flags = ["--model.cell.query_key_norm", "true,false", "--model.cell.injection_norm", "true"]
    found = [settings(recipe) for recipe in read_grid(flags).recipes(file)]
    keys = "model.cell.query_key_norm", "model.cell.injection_norm"
    assert [[recipe[key] for key in keys] for recipe in found] == [[True, True], [False, True]]


def test_values_that_begin_like_flags_or_have_spaces_or_equals_signs(file: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "a b")
    first, second = read_grid(["--run.name", "x = y", "--data.cache", f"{cache},{cache}=c"]).recipes(file)
    assert isinstance(first.data, Source)
    assert isinstance(second.data, Source)
    assert (first.data.cache, second.data.cache) == (Path(cache), Path(f"{cache}=c"))
    assert first.run.directory.name == "x = y"
    for momentum in ("-1", "-1,0"):
        flags = ["--training.optimizer", "sgd", "--training.optimizer.momentum", momentum, "--training.seed", "0,1"]
        with pytest.raises(UserError, match=r"^--training\.optimizer\.momentum: momentum must be .*, found -1"):
            read_grid(flags).recipes(file)


def test_values_need_only_go_together_as_they_are_combined(file: Path) -> None:
    # adamw, the recipe's own, has no momentum
    flags = ["--training.optimizer", "sgd,muon", "--training.optimizer.momentum", "0.9"]
    optimizers = [recipe.training.optimizer for recipe in read_grid(flags).recipes(file)]
    assert optimizers == [SGD(momentum=0.9), Muon(momentum=0.9)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.seed", "0,,1"], "no value before, after or between commas"),
        (["--training.seed", "0,1,"], "no value before, after or between commas"),
        (["--training.seed", "0,0"], "a value comes twice"),
        (["--training.seed", "0,1", "--training.seed", "2,3"], "--training.seed is given twice"),
        (["--training.seed", "0,1", "--training.seed", "2"], "--training.seed is given twice"),
        (["--run.name", "a,b"], "--run.name: names the folder"),
        (["0,1", "--training.seed", "2"], "0,1: unexpected argument"),
        (["--training.seed", "0,x"], '--training.seed = "x": expected an integer'),
        (["--training.sed", "0,1"], "^--training.sed: no such key; the nearest is .*seed"),
        (
            ["--training.optimizer", "sgd,adamw", "--training.optimizer.momentum", "0.9"],
            "--training.optimizer.momentum: .*adamw.* has no such",
        ),
        (["--data.cache", f"{'a' * 260},b"], "too long for a folder"),
        (["--data.cache", "a/b,a_b"], "two runs of the sweep would have the name cache=a_b"),
    ],
)
def test_what_is_wrong_is_said(file: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_grid(flags).recipes(file)
