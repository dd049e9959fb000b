"""Compiled steps of a run's model: compiled once for models of a shape, and refused where they cannot be."""

from pathlib import Path

import pytest

import equilibria as eq
from equilibria.cli.app import main
from equilibria.errors import UserError
from equilibria.inference import compiling
from equilibria.inference.compiling import compile_run
from tiny import TRAINING, tiny_recipe, tiny_trainer
from watching import Watcher


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "equilibria" / "compiled"


@pytest.mark.slow
def test_a_step_is_compiled_once_for_models_of_a_shape(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        tiny_trainer(tiny_recipe(tmp_path, TRAINING, name)).run()
    runs = [tmp_path / "runs" / name for name in ("one", "other")]
    draw = ["--prompt", "the cat", "--max-new-tokens", "20", "--temperature", "0", "--seed", "1"]
    assert main(["generate", str(runs[0]), *draw, "--compiled"]) == 0
    said = capsys.readouterr()
    assert "compiling a step of one token" in said.err
    (package,) = cache.iterdir()
    assert main(["generate", str(runs[0]), *draw]) == 0
    assert capsys.readouterr().out == said.out

    def never(*_: object) -> None:
        pytest.fail("compiled again")

    monkeypatch.setattr(compiling, "compile_token", never)
    loaded, watcher = eq.load_run(runs[1]), Watcher()
    compile_run(loaded, watcher)
    assert not watcher.said
    assert [*cache.iterdir()] == [package]


def test_what_cannot_be_compiled_is_refused_before_anything_is_made(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="take one of them"):
        eq.generate("demo", "The", compiled=True, guesses=2)
    with pytest.raises(UserError, match=r"contractive cells .* found TrellisCell"):
        compile_run(eq.load_run("s3"))
    assert main(["serve", "s3", "--compiled"]) == 2
    assert "continues no text" in capsys.readouterr().err
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(compiling, "compile_token", lambda *_: pytest.fail("compiled first"))
    with pytest.raises(UserError, match=r"compiled cannot be written"):
        compile_run(eq.load_run("demo"))
