"""A run made by the command itself, shared by the tests that only read it."""

from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.configuration import write_recipe


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file whose text, cache and runs are in a folder of their own."""
    base = tmp_path_factory.mktemp("cli")
    write_recipe(tiny.tiny_recipe(base), base / "tiny.toml")
    return base / "tiny.toml"


@pytest.fixture(scope="session")
def run(tiny_toml: Path) -> Path:
    """The folder of a finished run."""
    assert main(["train", str(tiny_toml), "--run.name", "shared"]) == 0
    return tiny_toml.parent / "runs" / "shared"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal: the app keeps the width it first printed at, and a narrow one folds the names of flags."""
    monkeypatch.setenv("COLUMNS", "200")
