"""The gradient in docs/adding-a-gradient.md is short, right, and works wherever a built-in one does."""

from __future__ import annotations

import re
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import equilibria as eq
from ways import tanh_map, tanh_problem

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-gradient.md"
SOLVER = eq.Anderson(tol=1e-11, max_evaluations=200)


@pytest.fixture(scope="module")
def damped(tmp_path_factory):
    source = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(source.splitlines()) < 40
    path = tmp_path_factory.mktemp("outside") / "damped.py"
    path.write_text(source, encoding="utf-8")
    return runpy.run_path(str(path))["DampedNeumann"]


def gradients(gradient: eq.Gradient, factor: float = 1.0) -> tuple[torch.Tensor, ...]:
    weight, inputs = tanh_problem()
    solution = eq.fixed_point(tanh_map(weight, inputs, factor), torch.zeros_like(inputs), SOLVER, gradient)
    return torch.autograd.grad(solution.value.square().sum(), (weight, inputs))


def test_it_is_the_gradient_of_the_solution(damped):
    exact = gradients(eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=100)))
    for found, wanted in zip(gradients(damped(terms=200)), exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_it_gives_iterates_their_graph_and_counts(damped):
    weight, inputs = tanh_problem()
    solution = eq.fixed_point(
        tanh_map(weight, inputs), torch.zeros_like(inputs), SOLVER, damped(terms=4), iterates=(1, 2, 1000)
    )
    assert sorted(solution.iterates) == [1, 2, 1000]
    assert solution.iterates[1000] is solution.value
    torch.autograd.grad(solution.value.sum() + solution.iterates[1].sum(), weight)
    assert solution.adjoint.evaluations == 6


def test_it_works_in_a_layer_and_in_transforms(damped):
    layer = eq.DEQ(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()), gradient=damped(), on_failure="ignore")
    layer(torch.zeros(2, 3)).value.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    weight, inputs = tanh_problem()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return eq.fixed_point(tanh_map(weight, inputs), torch.zeros_like(inputs), SOLVER, damped()).value.sum()

    direct = torch.autograd.grad(loss(weight), weight)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), direct)


@dataclass(frozen=True)
class LastStep(eq.Gradient):
    """One evaluation more, with its graph."""

    def attach(self, f, state, solve):
        with torch.enable_grad():
            value = f(state)
        tracked = state, value
        return eq.Attached(value, tracked, steps=1, first=tracked)


def test_one_that_moves_on_is_measured_again():
    weight, inputs = tanh_problem()
    solver = eq.Picard(tol=0.0, max_evaluations=5)
    f, z0 = tanh_map(weight, inputs), torch.zeros_like(inputs)
    free = eq.fixed_point(f, z0, solver, eq.JacobianFree(), on_failure="ignore")
    moved = eq.fixed_point(f, z0, solver, LastStep(), on_failure="ignore")
    torch.testing.assert_close(moved.value, f(free.value))
    torch.testing.assert_close(
        moved.residual,
        (f(moved.value) - moved.value).flatten(1).norm(dim=1).div(f(moved.value).flatten(1).norm(dim=1)).float(),
    )
    assert moved.evaluations == free.evaluations + 2


def test_what_only_looks_like_a_gradient_is_refused():
    class Attaches:
        def attach(self, f, state, solve):
            raise AssertionError

    with pytest.raises(TypeError, match="gradient must be an object such as Implicit"):
        eq.fixed_point(torch.tanh, torch.ones(1, 1), gradient=Attaches())  # type: ignore[arg-type]
