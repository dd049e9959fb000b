"""The solver in docs/adding-a-solver.md is short, works in every scope, and keeps the promises of the loop."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import equilibria as eq
from equilibria.solvers import Picard, Status
from problems import affine, causal_attention, nan_for_sample_after

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-solver.md"


@pytest.fixture(scope="module")
def aitken(tmp_path_factory):
    source = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(source.splitlines()) < 40
    path = tmp_path_factory.mktemp("outside") / "aitken.py"
    path.write_text(source, encoding="utf-8")
    return runpy.run_path(str(path))["Aitken"]


@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_it_solves(aitken, scope):
    f = affine(radius=0.8, causal=True)
    iterate = aitken(tol=1e-6, max_evaluations=300, scope=scope).solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer, atol=1e-3, rtol=1e-3)


def test_it_is_worth_having(aitken):
    # Plain iteration of z ↦ 3 − 2z diverges; one factor solves it.
    z0 = torch.zeros(2, 3)
    assert Picard(max_evaluations=60).solve(lambda z: 3.0 - 2.0 * z, z0).status is Status.DIVERGED
    assert aitken(max_evaluations=60).solve(lambda z: 3.0 - 2.0 * z, z0).status is Status.CONVERGED


@pytest.mark.parametrize("scope", ["token", "prefix"])
@pytest.mark.parametrize("budget", [2, 5, 9])
def test_it_is_causal(aitken, scope, budget):
    f = causal_attention(gain=1.5)
    later = f.injection.clone()
    later[:, 7:] += 1.0
    solver = aitken(tol=1e-4, max_evaluations=budget, scope=scope)
    one, other = (
        solver.solve(type(f)(f.weights, x, f.gain), torch.zeros_like(later)).value for x in (f.injection, later)
    )
    assert torch.equal(one[:, :7], other[:, :7])


def test_it_survives_nan(aitken):
    iterate = aitken(tol=1e-9, max_evaluations=20).solve(nan_for_sample_after(1, calls=1), torch.zeros(3, 4))
    assert iterate.status is Status.NON_FINITE
    assert bool(torch.isfinite(iterate.value).all())


def test_it_is_differentiated_like_any_other(aitken):
    weight = torch.tensor(0.5, requires_grad=True)
    solution = eq.fixed_point(lambda z: weight * z + 1.0, torch.zeros(1, 1), solver=aitken(tol=1e-6))
    solution.value.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(4.0, rel=1e-3)
