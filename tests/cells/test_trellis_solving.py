"""Solving a trellis cell: causality, convergence, its spectrum, and judging its gradients."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import equilibria as eq
from equilibria.cells import TrellisCell
from trellises import SIZE, D, random, settle, trellis


class Reader(nn.Module):
    """Just enough of a language model for the audits: an embedding, a solve, logits of the output."""

    def __init__(self, cell: TrellisCell, solver) -> None:
        super().__init__()
        self.embedding, self.cell, self.solver = nn.Embedding(11, cell.d_model), cell, solver
        self.decode = nn.Linear(cell.output_size, 11)

    def forward(self, tokens: Tensor):
        inputs = self.embedding(tokens)
        bound = self.cell.bind(inputs)
        start = self.cell.initial_state(inputs)
        solution = eq.fixed_point(bound, start, self.solver, on_failure="ignore")
        return SimpleNamespace(logits=self.decode(self.cell.readout(solution.value)))


@pytest.mark.parametrize("scan", [False, True], ids=["delayed", "scan"])
@pytest.mark.parametrize("scope", ["prefix", "token"])
@pytest.mark.parametrize("budget", [3, 9])
@pytest.mark.parametrize("method", [eq.Picard, eq.Anderson, eq.Broyden])
def test_it_is_causal_and_batch_invariant_exactly(method, budget, scope, scan):
    torch.manual_seed(2)
    cell = TrellisCell(8, 10, 6, dilation=2, normalisation="weight", recurrent_std=0.3, scan=scan)
    model = Reader(cell, method(tol=1e-3, max_evaluations=budget, scope=scope))
    tokens = torch.randint(11, (3, 20))
    assert eq.audit_causality(model, tokens, cuts=range(1, 20)).leak == 0.0
    assert eq.audit_batch_invariance(model, tokens).leak == 0.0


@pytest.mark.parametrize("scope", ["sample", "prefix"])
@pytest.mark.parametrize("method", [eq.Picard, eq.Anderson, eq.Broyden])
def test_a_fresh_cell_converges(method, scope):
    torch.manual_seed(4)
    inputs = torch.randn(2, 48, 64)
    found = []
    for scan in (False, True):
        torch.manual_seed(5)
        cell = TrellisCell(64, 96, 64, normalisation="weight", scan=scan).eval()
        bound = cell.bind(inputs)
        solver = method(tol=1e-5, max_evaluations=40, scope=scope)
        found.append(eq.fixed_point(bound, cell.initial_state(inputs), solver))
    delayed, scanned = found
    assert delayed.status is scanned.status is eq.Status.CONVERGED
    torch.testing.assert_close(scanned.value, delayed.value, rtol=1e-3, atol=1e-4)
    assert 2 * scanned.evaluations < delayed.evaluations


def test_what_comes_from_afar_takes_a_delayed_cell_one_evaluation_per_token():
    # Forget gates near one: c carries over hundreds of tokens, which a scan sees at once.
    cell, scanning = trellis(gain=0.02), trellis(gain=0.02, scan=True)
    with torch.no_grad():
        for each in (cell, scanning):
            each.inject.bias[3 * SIZE :] = 6.0
        inputs = random(1, 60, D)
        exact = settle(cell, inputs)
        errors = [(settle(each, inputs, applications=12) - exact).abs().max() for each in (cell, scanning)]
    assert errors[0] > 0.1
    assert errors[1] < 1e-6


def test_a_gradient_can_be_judged_where_solving_by_token_stalls():
    # Anderson by token takes each token for a problem of its own, while the chain of c moves them all.
    torch.manual_seed(0)
    cell, inputs = TrellisCell(16, 32, 16, recurrent_std=0.05).double().eval(), random(2, 64, 16)
    with torch.no_grad():
        cell.inject.bias[3 * 48 :] = 4.0
    bound, start = cell.bind(inputs), cell.initial_state(inputs)
    stalling = eq.Anderson(tol=1e-6, max_evaluations=500, history=8, scope="token")
    with torch.no_grad():
        solution = eq.fixed_point(bound, start, stalling, on_failure="ignore")
    assert solution.status is not eq.Status.CONVERGED
    solver = eq.Picard(tol=1e-7, max_evaluations=200, scope="token")
    bias, gradient = {"bias": cell.inject.bias}, eq.Implicit(eq.Picard(tol=1e-7, max_evaluations=200))
    errors = eq.gradient_error(bound, start, solver, gradient, bias)
    assert errors["bias"].relative_error < 1e-3


def test_the_radius_is_that_of_single_tokens():
    # The Jacobian is block lower triangular: what earlier tokens do moves no eigenvalue. Without the current tap
    # nothing of a token acts on itself, and the map is nilpotent however large the weight.
    cell, inputs = trellis(gain=0.8), random(1, 4, D)
    bound = cell.bind(inputs)
    z = settle(cell, inputs)
    jacobian = torch.autograd.functional.jacobian(bound, z).reshape(8 * SIZE, 8 * SIZE)
    blocks = jacobian.reshape(4, 2 * SIZE, 4, 2 * SIZE)
    assert all((blocks[t, :, s] == 0).all() for t in range(4) for s in range(t + 1, 4))
    radii = [float(torch.linalg.eigvals(blocks[t, :, t]).abs().max()) for t in range(4)]
    assert eq.spectral_radius(bound, z, tokens=range(4)) == pytest.approx(max(radii), rel=1e-6)
    with torch.no_grad():
        cell.recur.weight[:, SIZE:] = 0
    bound = cell.bind(inputs)
    assert eq.spectral_radius(bound, z, tokens=range(4)) < 1e-9
    states = [settle(cell, inputs, applications=n) for n in range(6)]
    torch.testing.assert_close(states[4], states[5])
    assert not any(torch.allclose(a, b) for a, b in pairwise(states[:5]))
