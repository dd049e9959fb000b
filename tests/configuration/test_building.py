"""From the names in a recipe to objects."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import tiny
from equilibria.cells import ContractiveCell, PostNormCell
from equilibria.configuration import (
    CellRecipe,
    DataRecipe,
    DepthRecipe,
    GradientRecipe,
    ModelRecipe,
    Recipe,
    RunRecipe,
    SolverRecipe,
    build_corpus,
    build_gradient,
    build_model,
    build_solver,
)
from equilibria.configuration.recipe import problems
from equilibria.depths import Equilibrium, UnrolledDepth
from equilibria.errors import UserError
from equilibria.gradients import Implicit, Phantom, Unrolled
from equilibria.solvers import GMRES, Anderson, Broyden, Picard
from watching import Watcher


def recipe(model: ModelRecipe | None = None, data: DataRecipe | None = None) -> Recipe:
    return Recipe(run=RunRecipe(name="x"), model=model or ModelRecipe(), data=data or DataRecipe())


def test_solvers_take_what_is_given_and_keep_their_defaults() -> None:
    limits = {"tol": 1e-4, "max_evaluations": 9}
    picard = SolverRecipe(method="picard", damping=0.5, scope="token", **limits)
    assert build_solver(picard) == Picard(damping=0.5, scope="token", **limits)
    anderson = SolverRecipe(method="anderson", ridge=0.0, **limits)
    assert build_solver(anderson) == Anderson(ridge=0.0, scope="prefix", **limits)
    broyden = SolverRecipe(method="broyden", history=5, scope="sample", **limits)
    assert build_solver(broyden) == Broyden(history=5, **limits)


def test_gradients_take_what_is_given_and_keep_their_defaults() -> None:
    assert build_gradient(GradientRecipe(method="phantom", steps=3)) == Phantom(steps=3)
    assert build_gradient(GradientRecipe(method="unrolled", checkpoint=True)) == Unrolled(checkpoint=True)
    assert build_gradient(GradientRecipe(method="implicit")) == Implicit()
    gradient = build_gradient(GradientRecipe(method="implicit", tol=1e-2))
    assert isinstance(gradient, Implicit)
    default = Implicit().solver
    assert isinstance(default, GMRES)
    assert gradient.solver == replace(default, tol=1e-2)


def test_the_model_has_the_cell_and_the_depth() -> None:
    cell = CellRecipe(d_model=16, heads=2, inner=24, blocks=2, dropout=0.25)
    model = build_model(recipe(ModelRecipe(cell=cell, memory_length=5)), 11)
    assert isinstance(model.cell, ContractiveCell)
    assert isinstance(model.depth, Equilibrium)
    assert (model.cell.d_model, len(model.cell.blocks), model.cell.dropout) == (16, 2, 0.25)
    assert (model.memory_length, model.dropout, model.embedding.vocabulary_size) == (5, 0.25, 11)
    depth = DepthRecipe(kind="unrolled", applications=3)
    other = build_model(recipe(ModelRecipe(cell=CellRecipe(kind="post_norm"), depth=depth)), 11)
    assert isinstance(other.cell, PostNormCell)
    assert other.depth == UnrolledDepth(applications=3)


def test_training_and_evaluation_have_their_own_solver() -> None:
    solver = SolverRecipe(method="picard", tol=0.1, max_evaluations=2)
    eval_solver = SolverRecipe(method="broyden", tol=0.2, max_evaluations=3)
    model = ModelRecipe(depth=DepthRecipe(solver=solver, eval_solver=eval_solver))
    depth = build_model(recipe(model), 5).depth
    assert isinstance(depth, Equilibrium)
    assert (depth.solver.max_evaluations, depth.eval_solver.max_evaluations) == (2, 3)
    assert isinstance(depth.eval_solver, Broyden)


def test_the_corpus_comes_from_the_source(tmp_path: Path) -> None:
    text, cache = tiny.write_text(tmp_path / "text"), tmp_path / "cache"
    folder = DataRecipe(source="folder", path=text, tokenizer="bytes", cache=cache)
    files = DataRecipe(source="files", files=(text / "train.txt",), tokenizer="word", cache=cache)
    watcher = Watcher()
    from_folder, from_files = (build_corpus(recipe(data=data), watcher) for data in (folder, files))
    assert watcher.bars
    assert from_folder.tokenizer.vocabulary_size == 256
    assert 20 < from_files.tokenizer.vocabulary_size < 200
    assert from_folder.split("train").words > from_files.split("train").words > 0


def test_an_incomplete_source_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.path"):
        build_corpus(recipe(data=DataRecipe(source="folder")))


CELLS = {
    "contractive": CellRecipe(d_model=16, heads=2, inner=24, key_value_heads=1),
    "post_norm": CellRecipe(kind="post_norm", d_model=16, heads=2, inner=24),
    "three_block": CellRecipe(kind="three_block", d_model=16, heads=2, inner=24),
    "trellis": CellRecipe(kind="trellis", d_model=16, hidden=8),
}


def newton(cell: CellRecipe, products: Literal["exact", "differences"] | None = None, **options: Any) -> ModelRecipe:
    solver = SolverRecipe(
        method="newton_krylov", tol=1e-3, max_evaluations=20, scope="sample", products=products, **options
    )
    return ModelRecipe(cell=cell, depth=DepthRecipe(solver=solver, eval_solver=solver), memory_length=4)


@pytest.mark.parametrize("kind", CELLS)
def test_newtons_method_takes_the_products_that_a_cell_has(kind: str) -> None:
    """In training, in evaluation, after a memory, and where keys and values are kept for a text that is written."""
    section = newton(CELLS[kind])
    assert list(problems(recipe(section))) == []
    torch.manual_seed(0)
    model = build_model(recipe(section), 11)
    tokens = torch.arange(12).view(2, 6) % 11
    first = model(tokens, targets=tokens)
    assert first.loss is not None
    first.loss.backward()
    model.eval()
    with torch.no_grad():
        again = model(tokens, targets=tokens, memory=first.memory)
        written = model.generate(tokens, max_new_tokens=2)
    assert again.loss is not None
    assert again.loss.isfinite()
    assert written.shape == (2, 8)
