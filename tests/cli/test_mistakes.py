"""Mistakes that people make, and what they are told: what is wrong, and how to mend it."""

from pathlib import Path

import pytest

import tiny
from equilibria.cli.app import main
from equilibria.configuration import write_recipe

RECIPE = "mine.toml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a run called vim that is only its recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny.tiny_recipe(tmp_path)
    write_recipe(recipe, Path(RECIPE))
    Path("runs/vim").mkdir(parents=True)
    write_recipe(recipe, Path("runs/vim/config.toml"))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            f"train {RECIPE} --training.wd 1",
            "--training.wd: no such key; the nearest is training.optimizer.weight_decay",
        ),
        (f"train {RECIPE} --help-all", "--help-all: no such flag; --help all explains everything"),
        (f"train {RECIPE} --training.optimizer adamW", 'did you mean "adamw"?'),
        (f"train {RECIPE} --training.seed 0,1", "expected an integer; `equilibria sweep` takes several values"),
        (f"train {RECIPE} --training.dropout 0,1", "--training.dropout: no such key; it takes"),
        (f"train {RECIPE} --lr fast", '--training.learning_rate = "fast": expected a number'),
        (
            f"train {RECIPE} --weight-decay 0",
            "--weight_decay: no such key; the nearest is training.optimizer.weight_decay",
        ),
        ("train runs", "runs is a folder without a run; a recipe is a TOML file, or one of the package"),
        ("eval vim", "there is no run folder vim; the nearest is runs/vim"),
        ("eval runs/vimm", "there is no run folder runs/vimm; the nearest is runs/vim"),
        ("report runs/vin", "there is no run folder runs/vin; the nearest is runs/vim"),
        (
            "eval runs/other",
            "there is no run folder runs/other; give one that `equilibria train` made or",
        ),
        (
            f"eval {RECIPE}",
            f"{RECIPE} is a file, and no run folder; if it is a recipe, train it first: equilibria train",
        ),
        ("help", "help: no such command; the nearest is --help"),
        ("-v", "-v: no such command; the nearest is --version"),
        ("--verson", "--verson: no such command; the nearest is --version"),
        ("trian", "trian: no such command; the nearest is train"),
        ("xyzzy", "xyzzy: no such command; there are train, eval, generate"),
    ],
)
def test_it_is_told(typed: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert main(typed.split()) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--model.depth.solver.scope", "sample"], 'model.depth.solver.scope = "sample"'),
        (["--model.depth.eval_solver.scope", "all"], 'model.depth.eval_solver.scope = "all"'),
    ],
)
def test_a_solver_that_looks_ahead_is_warned_of(
    flags: list[str], keys: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, "--seconds", "0.01", *flags]) == 0
    assert f"warning: {keys}: when a token stops depends on later ones" in capsys.readouterr().err


def test_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"worth", "serving", "laboratory"} <= lines.keys()
    assert "Where an equilibrium is worth having" in lines["worth"]
