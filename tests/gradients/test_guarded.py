"""`Guarded`: the implicit gradient of the groups that succeed, the series of the others, each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.gradients import Gradient
from ways import EXACT, tanh_map, tanh_problem

SERIES = eq.Neumann(terms=3)
GUARDED = eq.Guarded(EXACT.solver, SERIES)
# By plain iteration each sample reaches 1e-6 in 20 evaluations, or does not.
GAINS = torch.tensor([[0.2], [0.97], [0.4], [0.9]], dtype=torch.float64)
SOLVER = eq.Picard(tol=1e-6, max_evaluations=20)


def gradient_of(gradient: Gradient, gains: Tensor = GAINS, solver: eq.Picard = SOLVER) -> tuple[eq.Solution, Tensor]:
    """Of `z = gain · tanh(z) + x`, with respect to `x`."""
    x = torch.linspace(0.1, 1.0, 2 * len(gains), dtype=torch.float64).reshape(-1, 2).requires_grad_()
    solution = eq.fixed_point(
        lambda z: gains * torch.tanh(z) + 0.1 * x, torch.zeros_like(x), solver, gradient, on_failure="ignore"
    )
    return solution, torch.autograd.grad(solution.value.square().sum(), x)[0]


def test_each_sample_takes_the_gradient_of_its_own_solve():
    solution, found = gradient_of(GUARDED)
    assert solution.converged.tolist() == [True, False, True, False]
    _, implicit = gradient_of(EXACT)
    _, series = gradient_of(SERIES)
    torch.testing.assert_close(found, torch.where(solution.converged[:, None], implicit, series))


def test_no_sample_hears_of_the_failure_of_another():
    _, together = gradient_of(GUARDED)
    _, without = gradient_of(GUARDED, torch.where(GAINS > 0.5, 0.1, GAINS))
    torch.testing.assert_close(together[::2], without[::2])


def test_an_adjoint_that_is_not_solved_gives_way_to_the_series():
    loose = eq.Picard(tol=1e-6, max_evaluations=5000)
    solution, found = gradient_of(eq.Guarded(eq.Picard(tol=1e-8, max_evaluations=30), SERIES), solver=loose)
    assert solution.status is eq.Status.CONVERGED
    assert solution.adjoint.status is eq.Status.MAX_EVALUATIONS
    assert solution.adjoint.residual is not None
    solved = solution.adjoint.residual <= 1e-8
    assert solved.tolist() == [True, False, True, False]
    expected = torch.where(solved[:, None], gradient_of(EXACT, solver=loose)[1], gradient_of(SERIES, solver=loose)[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_nearly_singular_sample_that_falls_short_does_not_outweigh_the_others():
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([[0.5], [1 - 1e-6]], dtype=torch.float64)
    for gradient, least, most in ((EXACT, 1e5, 1e7), (eq.Guarded(), 4.9, 5.0)):
        solution = eq.fixed_point(lambda z: gains * z + x, torch.zeros(2, 1).double(), SOLVER, gradient, "ignore")
        found = torch.autograd.grad(solution.value.sum(), x)[0]
        assert found[0].item() == pytest.approx(2.0, rel=2e-3)
        assert least < found[1].item() < most


@pytest.mark.parametrize("scope", ["token", "prefix"])
def test_tokens_that_fell_short_take_the_series(scope: str):
    weight, inputs = tanh_problem()
    offset = torch.cat([0.01 * inputs[:, :1], inputs[:, 1:]], dim=1).detach().requires_grad_()
    solver = eq.Picard(tol=2e-3, max_evaluations=5, scope=scope)  # pyright: ignore[reportArgumentType]
    found = {}
    for gradient in (GUARDED, EXACT, SERIES):
        solution = eq.fixed_point(tanh_map(weight, offset), torch.zeros_like(offset), solver, gradient, "ignore")
        found[gradient] = torch.autograd.grad(solution.value.square().sum(), offset)[0], solution.converged
    done = found[GUARDED][1]
    assert 0 < int(done.sum()) < done.numel()
    # The map mixes no tokens, so that each has its own gradient.
    torch.testing.assert_close(found[GUARDED][0], torch.where(done[..., None], found[EXACT][0], found[SERIES][0]))


def test_a_map_that_couples_rows_has_what_comes_in_split():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    mixing = 0.9 * mixing / mixing.sum(-1, keepdim=True)
    mixing[0] *= 0.01
    x = torch.rand(4, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    # By plain iteration the adjoint is right for any coupling.
    guarded = eq.Guarded(eq.Picard(tol=1e-13, max_evaluations=1000), SERIES)
    solver = eq.Picard(tol=1e-2, max_evaluations=8)
    solution = eq.fixed_point(lambda z: mixing @ z + x, torch.zeros(4, 1).double(), solver, guarded, "ignore")
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]
    found = torch.autograd.grad((weights * solution.value).sum(), x)[0]
    done = solution.converged[:, None]
    assert 0 < int(done.sum()) < 4
    transposed, identity = mixing.mT, torch.eye(4, dtype=torch.float64)
    series = identity + transposed + transposed @ transposed
    expected = torch.linalg.solve(identity - transposed, done * weights) + series @ (~done * weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_it_has_the_tangent_of_the_solution():
    weight, inputs = tanh_problem()

    def solve(offset: Tensor) -> Tensor:
        solver = eq.Anderson(tol=1e-11, max_evaluations=200)
        return eq.fixed_point(tanh_map(weight.detach(), offset), torch.zeros_like(offset), solver, GUARDED).value

    direction = torch.ones_like(inputs)
    tangent = torch.func.jvp(solve, (inputs.detach(),), (direction,))[1]
    backward = torch.autograd.grad(solve(inputs).sum(), inputs)[0].sum()
    torch.testing.assert_close(tangent.sum(), backward)


def test_in_low_precision_no_sample_hears_of_an_adjoint_that_failed_either():
    def found(gain: float) -> tuple[Tensor, eq.Solution]:
        torch.manual_seed(1)
        turn = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
        weight, gains = (0.9 * turn).bfloat16(), torch.tensor([[1.0], [1.0], [1.0], [gain]]).bfloat16()
        x = torch.randn(4, 40).bfloat16().requires_grad_()
        solver = eq.Broyden(tol=2e-2, max_evaluations=200)
        solution = eq.fixed_point(
            lambda z: gains * (z @ weight) + x, torch.zeros_like(x), solver, eq.Guarded(), "ignore"
        )
        return torch.autograd.grad(solution.value.float().sum(), x)[0], solution

    alone, solution = found(1.0)
    beside, worse = found(1.1)
    assert bool(solution.converged[:3].all() & worse.converged[:3].all())
    torch.testing.assert_close(beside[:3].float(), alone[:3].float(), rtol=0.1, atol=0.1)


def test_a_failed_adjoint_says_what_took_its_place():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    gradient = eq.Guarded(eq.GMRES(tol=1e-12, max_evaluations=2))
    solver = eq.Picard(tol=1e-6, max_evaluations=100)
    solution = eq.fixed_point(lambda z: torch.tanh(gains * z + x), torch.zeros_like(x), solver, gradient, "warn")
    with pytest.warns(eq.ConvergenceWarning, match=r"series took the place.*Guarded\(solver="):
        solution.value.sum().backward()
