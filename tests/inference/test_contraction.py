"""Spectral radii of single tokens at the solution, of models with and without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import equilibria as eq
from equilibria.cells import Cell, ContractiveCell, TransformerXLCell, TrellisCell
from equilibria.depths import Adaptive, Depth, Equilibrium, ExitOnResidual, UnrolledDepth
from equilibria.inference.contraction import spectral_radii_of
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding
from equilibria.paper.baselines import LSTMLayer, SequenceModel

V, D = 23, 16
SOLVED = Equilibrium(eval_solver=eq.Picard(tol=1e-7, max_evaluations=300, scope="prefix"))


class Leaky(Cell):
    """A cell that keeps nothing in a cache, and looks at the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.d_model, self.own, self.before = D, nn.Linear(D, D), nn.Linear(D, D, bias=False)

    def evaluate(self, z: Tensor, inputs: Tensor, past: object) -> Tensor:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return torch.tanh(0.5 * self.own(z) + 0.5 * self.before(before) + inputs)


CELLS = {
    "attention": lambda: ContractiveCell(D, 2, 24),
    "two blocks": lambda: ContractiveCell(D, 2, 24, blocks=2, positions="linear"),
    "windowed": lambda: TransformerXLCell(D, 2, 24, affine=True, window=5),
    "trellis": lambda: TrellisCell(D, 8, recurrent_std=0.3, scan=True),
    "without a cache": Leaky,
}


def model(cell, depth: Depth = SOLVED, **frame) -> LanguageModel:
    torch.manual_seed(0)
    built = LanguageModel(TiedEmbedding(V, D), cell(), depth, **frame)
    with torch.no_grad():
        for parameter in built.cell.parameters():
            parameter.mul_(0.6)
    return built


def radii(built: LanguageModel, tokens: Tensor, depth: Depth | None = None) -> np.ndarray:
    found = spectral_radii_of(built, tokens, depth)
    assert found is not None
    return found


def text(batch: int, length: int) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("framed", [False, True], ids=["alone", "framed"])
@pytest.mark.parametrize("batch", [1, 20])
def test_radii_are_those_of_tokens_of_the_whole_map(cell, framed: bool, batch: int) -> None:
    frame: dict[str, Any] = {
        "prelude": ContractiveCell(D, 2, 24, injection=False),
        "coda": ContractiveCell(D, 2, 24, injection=False),
    }
    built, tokens = model(cell, **(frame if framed else {})).train(), text(batch, 13)
    state = torch.get_rng_state()
    found = radii(built, tokens)
    assert built.training
    assert torch.equal(torch.get_rng_state(), state)
    bound, solution = built.eval().solve(tokens)
    radii_TB = eq.spectral_radii(bound, solution.value, tokens=range(13)).numpy()
    if cell is Leaky:
        expected = radii_TB[[0, 4, 8, 12], :4].flatten()
    else:
        expected = radii_TB[np.linspace(1, 12, 16).astype(int), np.arange(16) % batch]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_a_segment_of_one_token_and_of_very_many(cell) -> None:
    built = model(cell)
    alone = radii(built, text(2, 1))
    bound, solution = built.eval().solve(text(2, 1))
    np.testing.assert_allclose(alone, eq.spectral_radii(bound, solution.value).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(radii(built, text(2, 300)), radii(built, text(2, 300)[:, :128]))


def test_another_depth_and_chunks_are_solved_as_they_are() -> None:
    built, tokens = model(CELLS["attention"]), text(3, 12)
    found = radii(built, tokens)
    adaptive = Adaptive(ExitOnResidual(1e-6), max_evaluations=300)
    np.testing.assert_allclose(radii(built, tokens, adaptive), found, rtol=1e-3)
    chunked = model(CELLS["without a cache"], memory_length=4, chunk_length=5)
    assert radii(chunked, tokens).shape == (12,)


class Mean(Cell):
    """Every token sees the mean of all."""

    causal = False

    def __init__(self) -> None:
        super().__init__()
        self.d_model = D

    def evaluate(self, z: Tensor, inputs: Tensor, past: object) -> Tensor:
        return 0.2 * z + 0.6 * z.mean(1, keepdim=True) + inputs


def test_of_tokens_that_all_see_each_other_the_radius_is_that_of_a_row() -> None:
    torch.manual_seed(0)
    solver = eq.Picard(tol=1e-7, max_evaluations=300, scope="sample")
    built = LanguageModel(TiedEmbedding(V, D), Mean(), Equilibrium(eval_solver=solver, solver=solver))
    assert radii(built, text(6, 9)) == pytest.approx([0.8] * 4, rel=1e-5)


def test_there_is_no_radius_where_nothing_is_solved() -> None:
    assert spectral_radii_of(model(CELLS["attention"], UnrolledDepth(3)), text(2, 9)) is None
    assert spectral_radii_of(model(CELLS["attention"]), text(2, 9), UnrolledDepth(3)) is None
    assert spectral_radii_of(SequenceModel(TiedEmbedding(V, D), [LSTMLayer(D, D)]), text(2, 9)) is None


@pytest.mark.parametrize("cell", [CELLS["attention"], Leaky])
def test_a_state_that_is_not_finite_has_none(cell) -> None:
    built = model(cell)
    with torch.no_grad():
        next(built.cell.parameters()).fill_(torch.nan)
    found = radii(built, text(2, 9))
    assert np.isnan(found).all()
