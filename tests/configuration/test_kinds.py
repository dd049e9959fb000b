"""Kinds and their options: every class that a recipe may name can be said, explained and named again."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import equilibria.configuration as configuration
from equilibria.cells import Cell, ContractiveCell, TransformerXLCell
from equilibria.configuration.kinds import REQUIRED, Family, explained, family_of, options
from equilibria.data import CopyMemory, Source, Task
from equilibria.depths import Depth, Limits, Stack
from equilibria.gradients import Gradient, Guarded, Implicit
from equilibria.models import LanguageModelRecipe, ModelRecipe
from equilibria.nn import TokenEmbedding
from equilibria.optimization import AdamW, Averaging, Optimizer, Schedule, WarmupStableDecay
from equilibria.paper.baselines import LSTM, RelationalMemory
from equilibria.solvers import GMRES, AdjointSolver, NewtonKrylov, Solver

BASES = (
    *(Solver, AdjointSolver, Gradient, Cell, Depth, Limits, TokenEmbedding, ModelRecipe, Source, Task),
    *(Optimizer, Schedule, Averaging),
)


def family(base: type) -> Family:
    found = family_of(base)
    assert found is not None
    return found


def kinds() -> list[tuple[Family, str, type]]:
    families = {family(base) for base in BASES} | {family(GMRES)}
    return sorted(
        ((found, name, cls) for found in families for name, cls in found.kinds().items()),
        key=lambda kind: (kind[0].noun, kind[1]),
    )


def test_every_family_has_its_kinds() -> None:
    assert {*family(Cell).kinds()} == {"contractive", "transformer_xl", "trellis"}
    assert {*family(Solver).kinds()} == {"anderson", "broyden", "newton_krylov", "picard"}
    assert {*family(GMRES).kinds()} == {"anderson", "broyden", "gmres", "newton_krylov", "picard"}
    assert {*family(Depth).kinds()} == {"equilibrium", "stack", "unrolled"}
    assert {*family(Optimizer).kinds()} == {"adamw", "adam", "radam", "sgd", "muon"}
    assert {*family(TokenEmbedding).kinds()} == {"adaptive", "tied", "untied"}
    assert {*family(Source).kinds()} == {
        *("cellular_automaton", "copy_memory", "embedded", "files", "folder", "hop_induction", "maze", "reversal"),
        *("sudoku", "sudoku_files", "word_problem"),
    }
    assert {*family(Limits).kinds()} == {"growing", "random"}
    assert {*family(Averaging).kinds()} == {"exponential", "uniform"}
    assert {*family(Schedule).kinds()} >= {"constant", "cosine", "inverse_square_root", "warmup_stable_decay"}
    assert {*family(Gradient).kinds()} >= {"implicit", "phantom", "reversible", "switching", "unrolled"}
    assert not {"no_gradient", "tangent"} & {*family(Gradient).kinds()}


@pytest.mark.parametrize(("found", "name", "cls"), kinds(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_kind_is_found_named_and_explained(found: Family, name: str, cls: type) -> None:
    assert found.find(name) is cls
    assert found.name(cls) == name
    assert found.find(f"{cls.__module__}:{cls.__name__}") is cls
    texts = explained(cls)
    for option in options(cls).values():
        assert texts.get(option.name), f"{cls.__name__} does not explain {option.name}"


@pytest.mark.parametrize("cls", [LanguageModelRecipe, LSTM, RelationalMemory, configuration.TrainingRecipe])
def test_sections_are_explained(cls: type) -> None:
    assert options(cls).keys() <= {name for name, text in explained(cls).items() if text}


def test_options_are_the_arguments_of_the_constructor() -> None:
    found = options(TransformerXLCell)
    assert "injection" not in found
    assert (found["d_model"].default, found["window"].default) == (128, None)
    assert options(LSTM)["d_model"].default is REQUIRED
    assert options(Guarded)["solver"].default == Guarded().solver


def test_what_toml_cannot_say_is_no_option() -> None:
    assert "preconditioner" not in options(NewtonKrylov)
    assert list(options(Implicit)) == ["solver", "higher_order", "checkpoint"]  # its memory changes as a program runs
    assert {"inner", "forcing", "products", "draft", "fallback"} <= options(NewtonKrylov).keys()


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        (Cell, "contractiv", '"contractiv": expected one of "contractive".*did you mean "contractive"'),
        (Cell, "equilibria.depths:Stack", "expected a subclass of equilibria.cells.base.Cell"),
        (Cell, "os:getcwd", "expected a subclass"),
        (Cell, "no_such_module:Cell", "cannot be imported"),
        (Cell, "equilibria.cells:Missing", "the module equilibria.cells has no Missing"),
        (Depth, "adaptive", "expected one of"),
    ],
)
def test_a_kind_that_is_not_there(base: type, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(base).find(kind)


def test_a_class_of_ones_own_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solver_of_mine.py").write_text(
        "from dataclasses import dataclass\nfrom equilibria.solvers import Picard\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Picard):\n    speed: float = 2.0\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = family(Solver).find("solver_of_mine:Mine")
    assert family(Solver).name(found) == "solver_of_mine:Mine"
    assert options(found)["speed"].default == 2.0
    del sys.modules["solver_of_mine"]


def test_names_become_kinds() -> None:
    assert family(AdamW).name(AdamW) == "adamw"
    assert family(Cell).name(ContractiveCell) == "contractive"
    assert family(Schedule).name(WarmupStableDecay) == "warmup_stable_decay"
    assert family(Task).name(CopyMemory) == "copy_memory"
    assert family(Depth).name(Stack) == "stack"


@dataclass(frozen=True)
class Typed:
    """Holds a type of PyTorch.

    Args:
        dtype: of what.
    """

    dtype: torch.dtype = torch.float32


def test_a_type_of_pytorch_is_an_option() -> None:
    assert list(options(Typed)) == ["dtype"]
