"""A run folder is begun in a place that is free: what a start that failed left there is no run."""

from pathlib import Path

import pytest

from equilibria.configuration import Recipe, read_recipe, table_of
from equilibria.data import id_tokenizer
from equilibria.errors import UserError
from equilibria.files.durable import leftovers
from equilibria.runs.folder import RunFolder
from equilibria.training import preparation
from equilibria.training.preparation import claimed, furnish_run
from tiny import tiny_recipe


def create_run(folder: RunFolder, recipe: Recipe) -> None:
    with claimed(folder, resume=False):
        furnish_run(folder, recipe, id_tokenizer(10))


def full_disk(recipe: Recipe, path: Path, sealed: bool) -> None:
    path.with_name(".config.toml.00000000.partial").write_text("[run")
    raise OSError("no space left on device")


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunFolder, Recipe]:
    """A folder whose making failed while torchrun's process wrote the recipe."""
    recipe = tiny_recipe(tmp_path)
    folder = RunFolder(recipe.run.folder)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_recipe", full_disk)
        patch.setattr(preparation, "launch", lambda: "a launch")
        with pytest.raises(UserError, match="cannot be written"):
            create_run(folder, recipe)
    return folder, recipe


def test_a_start_that_failed_is_begun_again(failed: tuple[RunFolder, Recipe]) -> None:
    folder, recipe = failed
    assert {path.name for path in folder.path.iterdir()} == {
        *(".launch", "tokenizer.json", "manifest.json", "checkpoints", ".config.toml.00000000.partial"),
        *(".lock", ".keeping"),
    }
    create_run(folder, recipe)
    assert table_of(read_recipe(folder.config)) == table_of(recipe)
    assert not leftovers(folder.path)


@pytest.mark.parametrize("name", ["config.toml", "thesis.txt", "checkpoints/step-4"])
def test_a_folder_that_holds_anything_else_is_taken(failed: tuple[RunFolder, Recipe], name: str) -> None:
    folder, recipe = failed
    (folder.path / name).write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        create_run(folder, recipe)
    assert (folder.path / name).read_text() == "years of work"
