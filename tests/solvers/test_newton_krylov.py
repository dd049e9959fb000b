"""Newton's method: closed forms, honest counts, preconditioning, maps without a forward derivative."""

from __future__ import annotations

import pytest
import torch

from equilibria.solvers import NewtonKrylov, Picard, Status
from equilibria.solvers.base import Draft
from problems import affine, causal_attention, rotation, slow_diagonal, without_fixed_point


@pytest.mark.parametrize("products", ["exact", "differences"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reaches_closed_forms(products, dtype):
    for f in (affine(radius=0.8), affine(radius=3.0), rotation(1.5)):
        solver = NewtonKrylov(tol=1e-5, max_evaluations=200, inner=24, products=products)
        iterate = solver.solve(f, f.start.to(dtype))
        assert iterate.status is Status.CONVERGED
        value = iterate.value.reshape(f.start.shape).double()
        torch.testing.assert_close(value, f.answer, atol=1e-3, rtol=1e-3)


def test_converges_quadratically_near_a_solution():
    f = causal_attention(gain=0.8)
    z0 = Picard(tol=1e-2, max_evaluations=200).solve(f, torch.zeros_like(f.injection)).value.reshape(f.injection.shape)
    iterate = NewtonKrylov(tol=1e-12, max_evaluations=200, inner=30, forcing=1e-3).solve(f, z0)
    assert iterate.status is Status.CONVERGED
    residuals = sorted(set(iterate.trace), reverse=True)
    assert len(residuals) <= 5


@pytest.mark.parametrize("products", ["exact", "differences"])
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 17, 60])
def test_every_application_is_counted_and_none_is_beyond_the_budget(products, budget):
    f, calls = causal_attention(gain=1.2), 0

    def counted(z):
        nonlocal calls
        calls += 1
        return f(z)

    solver = NewtonKrylov(tol=1e-9, max_evaluations=budget, inner=4, products=products)
    iterate = solver.solve(counted, torch.zeros_like(f.injection))
    # One more measures what is returned.
    assert iterate.evaluations == calls == len(iterate.trace) <= budget + 1


@pytest.mark.parametrize("features", [1, 2, 3])
def test_a_step_is_charged_no_more_products_than_a_group_has_features(features):
    """Six Newton steps find the roots of 2, 3, 4 from 2; at nine evaluations a step the budget allows two."""
    wanted = torch.arange(2.0, 2.0 + features, dtype=torch.float64).view(1, -1).sqrt()
    solver = NewtonKrylov(tol=1e-12, max_evaluations=6 * (features + 1) + 1, forcing=1e-6)
    iterate = solver.solve(lambda z: z + wanted.square() - z.square(), torch.full_like(wanted, 2.0))
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value, wanted, rtol=1e-12, atol=0)


def test_a_preconditioner_saves_evaluations():
    f = slow_diagonal(0.999)
    inverse = 1.0 / (1.0 - torch.diagonal(f.matrix))

    def exact(z, v):
        assert z.shape == v.shape == f.start.shape
        return v * inverse

    plain = NewtonKrylov(tol=1e-8, max_evaluations=500).solve(f, f.start)
    helped = NewtonKrylov(tol=1e-8, max_evaluations=500, preconditioner=exact).solve(f, f.start)
    assert helped.status is Status.CONVERGED
    assert helped.evaluations <= 4 < plain.evaluations


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return 0.5 * z + 1.0

    @staticmethod
    def backward(ctx, *incoming):
        return 0.5 * incoming[0]


def test_a_map_without_a_forward_derivative_is_solved_by_differences_unless_exact_products_are_wanted():
    z0 = torch.zeros(2, 3)
    for exact in (NewtonKrylov(products="exact"), NewtonKrylov(draft=Draft())):
        with pytest.raises(RuntimeError, match='products="differences"'):
            exact.solve(_Opaque.apply, z0)
    found, differences = (NewtonKrylov(products=products, tol=1e-5) for products in (None, "differences"))
    iterate, expected = found.solve(_Opaque.apply, z0), differences.solve(_Opaque.apply, z0)
    torch.testing.assert_close(iterate.value, torch.full_like(z0, 2.0), rtol=1e-4, atol=0)
    assert torch.equal(iterate.value, expected.value)
    assert iterate.evaluations == expected.evaluations


def test_products_are_exact_where_the_map_has_them():
    z0 = torch.zeros(2, 3)
    found, exact = (NewtonKrylov(products=products).solve(torch.cos, z0) for products in (None, "exact"))
    assert torch.equal(found.value, exact.value)
    assert found.trace == exact.trace


def test_nested_states_and_half_precision():
    z0 = (torch.zeros(2, 3, dtype=torch.bfloat16), {"a": torch.zeros(2)})

    def f(z):
        return 0.5 * z[0] + 1.0, {"a": torch.cos(z[1]["a"])}

    iterate = NewtonKrylov(tol=1e-2).solve(f, z0)
    assert iterate.status is Status.CONVERGED
    assert iterate.value.dtype == torch.float32


def test_a_map_without_a_fixed_point_is_not_called_solved():
    iterate = NewtonKrylov(max_evaluations=60).solve(without_fixed_point, torch.zeros(2, 3))
    assert iterate.status is not Status.CONVERGED
    assert bool(torch.isfinite(iterate.value).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"inner": 0}, "inner"), ({"forcing": 1.0}, "forcing"), ({"products": "vjp"}, "products")],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        NewtonKrylov(**options)
