"""Less effort than a recipe's, or more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import equilibria as eq
from distributed_cases import IMPLICIT, language_model
from equilibria.cells import ContractiveCell
from equilibria.depths import Depth, Equilibrium, Stack, UnrolledDepth
from equilibria.errors import UserError
from equilibria.inference.effort import Effort, depth_at
from equilibria.models import LanguageModel
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.solvers.base import Draft
from own_kinds import Settled
from trellises import trellis

TOKENS = torch.arange(12).view(2, 6) % 7


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_holds_whatever_the_solver_would_add(limit: int) -> None:
    solver = eq.Picard(tol=1e-9, max_evaluations=5, scope="token", draft=Draft(), fallback=eq.Picard(scope="token"))
    model = language_model(replace(IMPLICIT, eval_solver=solver)).eval()
    with torch.no_grad():
        assert model(TOKENS).solution.evaluations > 40
        limited = depth_at(model, Effort(max_evaluations=limit))
        assert model(TOKENS, depth=limited).solution.evaluations == limit + 1  # the last one measures
    assert isinstance(model.depth, Equilibrium)
    assert model.depth.eval_solver == solver


def contractive() -> ContractiveCell:
    return ContractiveCell(d_model=16, heads=2, inner=32, carry=0.3)


@pytest.mark.parametrize("leave", ["converged", "unchanged"])
def test_tokens_leave_one_by_one_or_it_is_said_why_not(leave) -> None:
    torch.manual_seed(0)
    plain = LanguageModel(TiedEmbedding(31, 16), contractive(), IMPLICIT)
    with_coda = LanguageModel(TiedEmbedding(31, 16), contractive(), IMPLICIT, coda=contractive())
    together = LanguageModel(UntiedEmbedding(31, 3, 2), trellis().float(), IMPLICIT)
    long = torch.arange(200).view(2, 100) % 31
    for model in (plain, with_coda):
        if leave == "unchanged" and model is with_coda:
            with pytest.raises(UserError, match="layers after its equilibrium"):
                depth_at(model, Effort(leave=leave))
            continue
        with torch.no_grad():
            left = model.eval()(long, depth=depth_at(model, Effort(leave=leave, tolerance=1e-7)))
            solved = model(long, depth=depth_at(model, Effort(tolerance=1e-6, max_evaluations=60)))
        torch.testing.assert_close(left.logits, solved.logits, atol=1e-2, rtol=0)
    with pytest.raises(UserError, match="TrellisCell evaluates all tokens of a segment together"):
        depth_at(together, Effort(leave=leave))
    restarting = replace(IMPLICIT, eval_solver=replace(IMPLICIT.eval_solver, scope="sample"), restarts=eq.Restarts())
    with pytest.raises(UserError, match="from several starts"):
        depth_at(LanguageModel(TiedEmbedding(31, 16), contractive(), restarting), Effort(leave=leave))


@pytest.mark.parametrize("depth", [IMPLICIT, Settled(), UnrolledDepth(2)], ids=["ours", "solves", "explicit"])
@pytest.mark.parametrize("applications", [1, 2, 5])
@torch.no_grad()
def test_applications_are_those_of_the_explicit_network_with_the_same_weights(depth: Depth, applications: int) -> None:
    torch.manual_seed(0)
    model = LanguageModel(TiedEmbedding(31, 16), contractive(), depth).eval()
    read = model(TOKENS, TOKENS, depth=depth_at(model, Effort(applications=applications)))
    inputs = model.embedding(TOKENS) * 16**0.5
    bound, z = model.cell.bind(inputs), torch.zeros_like(inputs)
    for _ in range(applications):
        z = bound(z)
    torch.testing.assert_close(read.hidden, z)
    explicit = replace(read, hidden=model(TOKENS, depth=UnrolledDepth(applications)).hidden)
    assert torch.equal(explicit.logits, read.logits)
    assert read.solution is None


def test_applications_need_a_cell_that_is_applied_again_and_nothing_that_solves() -> None:
    layers = LanguageModel(TiedEmbedding(31, 16), contractive(), Stack(2))
    with pytest.raises(UserError, match="no cell that it applies again and again"):
        depth_at(layers, Effort(applications=3))
    others: tuple[dict[str, Any], ...] = ({"tolerance": 1e-2}, {"max_evaluations": 4}, {"leave": "converged"})
    for other in others:
        with pytest.raises(UserError, match="--applications 3 solves nothing"):
            Effort(applications=3, **other)


@pytest.mark.parametrize("depth", [Settled(), UnrolledDepth(2)], ids=["solves", "explicit"])
def test_a_depth_without_a_solver_of_ours_cannot_be_limited(depth: Depth) -> None:
    model = LanguageModel(TiedEmbedding(31, 16), contractive(), depth)
    assert depth_at(model, Effort()) is None
    with pytest.raises(UserError, match="this model has no solver that can be limited"):
        depth_at(model, Effort(max_evaluations=3))


def test_tokens_leave_by_relative_residuals_alone() -> None:
    absolute = replace(IMPLICIT, eval_solver=eq.Picard(tol=1e-2, scope="prefix", criterion="absolute"))
    model = LanguageModel(TiedEmbedding(31, 16), contractive(), absolute)
    with pytest.raises(UserError, match="measures the absolute one"):
        depth_at(model, Effort(leave="converged"))


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be above 0 and finite, found 0.0"),
        ({"tolerance": float("nan")}, "tolerance must be above 0"),
        ({"max_evaluations": 0}, "max_evaluations must be at least 1, found 0"),
        ({"applications": 0}, "applications must be at least 1, found 0"),
    ],
)
def test_an_effort_that_is_none_is_named(effort: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Effort(**effort)
