"""Every command on a run about grids, by a model whose tokens all see each other."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import equilibria as eq
from equilibria.cells import ContractiveCell
from equilibria.cli.app import main
from equilibria.configuration import write_recipe
from equilibria.data import FolderText, TokenizerSpec
from equilibria.errors import UserError
from equilibria.inference.run_evaluation import evaluate
from equilibria.models import LanguageModelRecipe
from own_kinds import CrossParity
from tiny import tiny_recipe

NO_TEXT = "every token of this model sees those after it (causal = false), so it continues no text"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("not-causal")
    solver = eq.Anderson(tol=1e-2, max_evaluations=12)
    model = LanguageModelRecipe(
        cell=partial(ContractiveCell, d_model=16, heads=2, inner=32, causal=False, positions="grid", columns=4),
        depth=eq.Equilibrium(solver=solver, eval_solver=solver),
    )
    write_recipe(replace(tiny_recipe(base, name="grid"), model=model, data=CrossParity()), base / "grid.toml")
    return base / "grid.toml"


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    assert main(["train", str(recipe)]) == 0
    return recipe.parent / "runs" / "grid"


def test_it_is_planned_evaluated_and_reported(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--seconds", "0.5", "--json"]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens"] == 40 * 12
    assert figures["residual"]["worst"] <= 1e-2
    assert main(["eval", str(run), "--data.rows", "5", "--json"]) == 0  # a taller grid
    assert json.loads(capsys.readouterr().out)["tokens"] == 40 * 20
    assert main(["report", str(run)]) == 0


@pytest.mark.parametrize("command", [["generate"], ["serve", "--port", "0"]])
def test_no_text_is_written(run: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], str(run), *command[1:]]) == 2
    assert NO_TEXT in capsys.readouterr().err


def test_it_is_exported_as_a_program_and_not_as_a_language_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert NO_TEXT in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert main(["export", str(run), str(tmp_path / "grid.pt2"), "--to", "torch", "--evaluations", "2"]) == 0
    grids = torch.randint(2, (5, 20))
    assert torch.export.load(tmp_path / "grid.pt2").module()(grids).shape == (5, 20, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory-length", "4"], "memory_length = 4: tokens that all see each other"),
        (["--leave", "converged"], "evaluates all tokens of a segment together; leave it out"),
        (["--data.columns", "3"], "model.cell.columns = 4: the grid of cross parity has 3 columns"),
    ],
)
def test_what_makes_no_sense_is_said(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_text_has_its_answers_in_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--data.files", str(Path(__file__))]) == 2
    assert "causal = false: tokens would see the answers of" in capsys.readouterr().err
    with pytest.raises(UserError, match="causal = false: tokens would see the answers of"):
        evaluate(run, data=FolderText(tmp_path, tokenizer=TokenizerSpec("bytes")))
