"""Every method on every kind of map, by closed form; scopes, statuses and the promises of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equilibria.solvers import GMRES, Anderson, Broyden, Picard, Status
from equilibria.solvers.state import Packing, leaves
from problems import (
    affine,
    causal_attention,
    doubling,
    nan_for_sample_after,
    rotation,
    slow_diagonal,
    two_fixed_points,
    without_fixed_point,
)


@dataclass(frozen=True, kw_only=True)
class Secant(Anderson):
    """Anderson with a single difference, whose steps are made otherwise."""

    history: int = 1


METHODS = [Picard, Anderson, Secant, Broyden]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_reaches_the_closed_form_on_a_causal_affine_map(method, scope):
    f = affine(radius=0.8, causal=True)
    iterate = method(tol=1e-8, max_evaluations=300, scope=scope).solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", [Picard(tol=1e-7, max_evaluations=400), Anderson(tol=1e-7), Broyden(tol=1e-7)])
def test_reaches_the_closed_form_on_a_non_normal_map(solver):
    f = affine(radius=0.7)
    iterate = type(solver)(tol=1e-7, max_evaluations=400).solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", [Anderson(tol=1e-6), Broyden(tol=1e-6), GMRES(tol=1e-6)])
def test_accelerated_methods_solve_a_map_that_expands(solver):
    f = rotation(1.5)
    iterate = solver.solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer, atol=1e-4, rtol=1e-4)
    assert Picard(max_evaluations=60).solve(f, f.start).status is not Status.CONVERGED


def test_anderson_with_a_relative_ridge_is_quick_where_an_absolute_one_stalls():
    f = slow_diagonal(0.95)
    for dtype in (torch.float32, torch.float64):
        assert Anderson(tol=1e-3).solve(f, f.start.to(dtype)).evaluations <= 45
        tight = Anderson(tol=1e-6, max_evaluations=200).solve(f, f.start.to(dtype))
        assert tight.status is Status.CONVERGED
        assert tight.evaluations <= 90


def test_gmres_ends_in_as_many_steps_as_dimensions():
    f = affine(radius=3.0, batch=4, length=2, features=3)
    iterate = GMRES(tol=1e-9, max_evaluations=30).solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    assert iterate.evaluations <= 6 + 2
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer)


def test_gmres_restarts():
    f = affine(radius=0.9)
    iterate = GMRES(tol=1e-6, max_evaluations=200, restart=5).solve(f, f.start)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value.reshape(f.start.shape), f.answer, atol=1e-4, rtol=1e-4)


def test_broyden_with_bounded_history_drops_the_oldest_pair_without_harm():
    f = affine(radius=0.9)
    bounded = Broyden(tol=1e-6, max_evaluations=200, history=4).solve(f, f.start)
    assert bounded.status is Status.CONVERGED
    assert bounded.evaluations > 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["token", "prefix"])
@pytest.mark.parametrize("budget", [1, 2, 3, 6, 12])
def test_causal_at_any_budget_exactly(method, scope, budget):
    f = causal_attention(gain=1.5)
    z0 = torch.zeros_like(f.injection)
    later = f.injection.clone()
    later[:, 7:] = torch.randn(later[:, 7:].shape, generator=torch.Generator().manual_seed(1)).double()
    solver = method(tol=1e-4, max_evaluations=budget, scope=scope)
    one = solver.solve(f, z0)
    other = solver.solve(type(f)(f.weights, later, f.gain), z0)
    assert float((one.value[:, :7] - other.value[:, :7]).abs().max()) == 0.0
    # The change must be seen where it may be.
    assert float((one.value[:, 7:] - other.value[:, 7:]).abs().max()) > 0.0


def test_sample_scope_is_not_causal_which_is_why_the_others_exist():
    f = causal_attention(gain=1.5)
    later = f.injection.clone()
    later[:, 7:] += 1.0
    solver = Anderson(tol=1e-4, max_evaluations=6)
    one = solver.solve(f, torch.zeros_like(later)).value.reshape(later.shape)
    other = solver.solve(type(f)(f.weights, later, f.gain), torch.zeros_like(later)).value.reshape(later.shape)
    assert float((one[:, :7] - other[:, :7]).abs().max()) > 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
def test_a_sample_does_not_depend_on_its_neighbours(method, scope):
    f = causal_attention(gain=1.2, batch=3)
    other = f.injection.clone()
    other[1:] *= 3.0
    solver = method(tol=1e-3, max_evaluations=9, scope=scope)
    one = solver.solve(f, torch.zeros_like(other)).value[0]
    two = solver.solve(type(f)(f.weights, other, f.gain), torch.zeros_like(other)).value[0]
    assert torch.equal(one, two)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["sample", "token", "prefix"])
@pytest.mark.parametrize("budget", [1, 2, 5, 60])
def test_the_returned_residual_is_that_of_the_returned_value(method, scope, budget):
    f = causal_attention(gain=1.4)
    z0 = torch.zeros_like(f.injection)
    solver = method(tol=1e-5, max_evaluations=budget, scope=scope)
    iterate = solver.solve(f, z0)
    value = iterate.value.reshape(z0.shape)
    packing = Packing.of(z0, scope)
    difference = torch.linalg.vector_norm(packing.pack(f(value) - value), dim=-1)
    expected = difference / torch.linalg.vector_norm(packing.pack(f(value)), dim=-1)
    torch.testing.assert_close(iterate.residual.double(), expected, atol=1e-7, rtol=1e-4)
    # One more measures what is returned, and another one what is put together of several evaluations.
    assert iterate.evaluations == len(iterate.trace) <= budget + (2 if scope == "sample" else 1)
    assert iterate.residual.dtype == torch.float32
    assert (iterate.status is Status.CONVERGED) == bool((iterate.residual <= 1e-5).all())


def test_damping_does_not_shrink_the_reported_residual():
    f = affine(radius=0.5)
    one = Picard(damping=0.1, max_evaluations=1).solve(f, f.start)
    assert one.trace[0] == pytest.approx(1.0)
    assert one.status is Status.MAX_EVALUATIONS


def test_converged_groups_do_not_move():
    f = affine(radius=0.5, batch=2)
    z0 = torch.stack([f.answer[0], torch.zeros_like(f.answer[1])])
    iterate = Picard(tol=1e-6, max_evaluations=100).solve(f, z0)
    assert torch.equal(iterate.value.reshape(z0.shape)[0], z0[0])
    assert iterate.group_evaluations[0] == 1 < iterate.group_evaluations[1]


def test_a_token_that_froze_too_early_is_released():
    # Token 1 copies token 0, which stands still for a while before it moves.
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        first = z[:, :1] if calls < 4 else 0.5 * z[:, :1] + 2.0
        return torch.cat([first, z[:, :1]], dim=1)

    z0 = torch.ones(1, 2, 1)

    def never_quite(z):
        return f(z) + torch.tensor([[[1e-2], [0.0]]])

    iterate = Picard(tol=1e-3, max_evaluations=60, scope="token").solve(never_quite, z0)
    assert iterate.status is Status.CONVERGED
    torch.testing.assert_close(iterate.value[0, 1], iterate.value[0, 0], rtol=1e-2, atol=0)
    assert float(iterate.value[0, 1]) > 3.0


@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("scope", ["token", "prefix"])
def test_steps_of_anderson_are_those_of_least_squares(scope, history, damping):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*shape, 6, generator=generator, dtype=torch.float64) for shape in ((6,), (2, 4)))

    def f(z: Tensor) -> Tensor:
        return torch.tanh(0.4 * z @ weight + x + 0.2 * torch.roll(z, 1, 1))

    solver = Anderson(tol=0, max_evaluations=5, scope=scope, history=history, ridge=0.0, damping=damping)
    iterates = solver.solve(f, torch.zeros_like(x), iterates=range(5)).iterates
    for k in range(1, 5):
        points = [iterates[number] for number in range(max(0, k - 1 - history), k)]
        values = [f(z) for z in points]
        residuals = [value - z for value, z in zip(values, points, strict=True)]
        for row, token in product(range(2), range(4)):
            # A prefix is all tokens up to this one.
            seen = range(token if scope == "token" else 0, token + 1)
            change = [(b - a)[row, seen].flatten() for a, b in pairwise(residuals)]
            gamma = torch.zeros(0, dtype=torch.float64)
            if change:
                gamma = torch.linalg.lstsq(torch.stack(change, 1), residuals[-1][row, seen].flatten()[:, None])[0][:, 0]
            wanted = (points[-1] + damping * residuals[-1])[row, token]
            for weight_, (a, b), (c, d) in zip(gamma, pairwise(points), pairwise(residuals), strict=True):
                wanted = wanted - weight_ * ((b - a) + damping * (d - c))[row, token]
            torch.testing.assert_close(iterates[k][row, token], wanted, rtol=1e-4, atol=1e-4)


def test_warm_start_needs_fewer_evaluations():
    f = affine(radius=0.9, causal=True)
    solver = Anderson(tol=1e-5, max_evaluations=200)
    cold = solver.solve(f, f.start)
    warm = solver.solve(f, cold.value.reshape(f.start.shape) + 1e-4)
    assert warm.evaluations < cold.evaluations


@pytest.mark.parametrize("method", METHODS)
def test_status_of_maps_that_cannot_be_solved(method):
    z0 = torch.zeros(2, 3)
    assert method(max_evaluations=60, tol=1e-6).solve(without_fixed_point, z0).status is not Status.CONVERGED
    assert Picard(max_evaluations=60).solve(doubling, z0).status is Status.DIVERGED
    assert Picard(max_evaluations=60).solve(lambda z: 1.0 - z, z0).status is Status.STALLED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_nan_in_one_sample_stays_there_and_never_replaces_its_best(method, scope):
    z0 = torch.zeros(3, 2, 2)
    iterate = method(tol=1e-5, max_evaluations=40, scope=scope).solve(nan_for_sample_after(1, calls=2), z0)
    value = iterate.value.reshape(z0.shape)
    assert iterate.status is Status.NON_FINITE
    assert bool(torch.isfinite(value).all())
    torch.testing.assert_close(value[0], torch.full((2, 2), 2.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(value[2], torch.full((2, 2), 2.0), rtol=1e-4, atol=0)


def test_nan_from_the_first_evaluation_returns_the_start():
    iterate = Anderson(max_evaluations=5).solve(lambda z: z * torch.nan, torch.ones(2, 2))
    assert iterate.status is Status.NON_FINITE
    assert torch.equal(iterate.value, torch.ones(2, 2))


def test_finds_the_attracting_one_of_two_fixed_points():
    iterate = Picard(tol=1e-6).solve(two_fixed_points, torch.full((1, 1), 0.1))
    assert float(iterate.value) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_solver_memory_does_not_grow_with_the_budget(method):
    f = affine(radius=0.99)
    seen: list[int] = []

    class Watched(method):
        def step(self, memory, point, groups):
            proposal, memory = super().step(memory, point, groups)
            seen.append(held(memory))
            return proposal, memory

    def held(part) -> int:
        """Elements of all tensors in a memory."""
        if isinstance(part, torch.Tensor):
            return part.numel()
        if isinstance(part, dict):
            return sum(map(held, part.values()))
        return sum(map(held, part)) if isinstance(part, list | tuple) else held(getattr(part, "__dict__", {}))

    Watched(tol=0.0, max_evaluations=60).solve(f, f.start)
    assert max(seen[40:]) == max(seen[:40])
    assert (max(seen) > 0) == (method is not Picard)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 4),
    features=st.integers(1, 3),
    method=st.sampled_from(METHODS),
    scope=st.sampled_from(["sample", "token", "prefix"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    nest=st.sampled_from(["tensor", "tuple", "dict", "list"]),
)
def test_any_shape_nesting_and_dtype(batch, length, features, method, scope, dtype, nest):
    one, two = (
        torch.zeros(batch, length, features, dtype=dtype),
        torch.ones(batch, length, dtype=torch.float32),
    )
    z0 = {
        "tensor": one,
        "tuple": (one, two),
        "list": [one, [two]],
        "dict": {"a": one, "b": (two,)},
    }[nest]
    packing = Packing.of(z0, scope)

    def f(z):
        return packing.unpack(0.25 * packing.pack(z) + 1.0)

    iterate = method(tol=1e-2, scope=scope).solve(f, z0)
    solved = packing.unpack(iterate.value)
    assert iterate.status is Status.CONVERGED
    for leaf, original in zip(leaves(solved), leaves(z0), strict=True):
        assert leaf.dtype == original.dtype
        assert leaf.shape == original.shape
        torch.testing.assert_close(leaf.float(), torch.full(leaf.shape, 4 / 3), rtol=3e-2, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 2])
def test_tiny_budgets_are_reported_not_hidden(method, budget):
    f = affine(radius=0.9)
    iterate = method(tol=1e-6, max_evaluations=budget).solve(f, f.start)
    assert iterate.status is Status.MAX_EVALUATIONS
    assert iterate.evaluations == budget + 1  # the last one measures what is returned
    if budget == 1:
        torch.testing.assert_close(iterate.value.reshape(f.start.shape), f(f.start))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Picard(history=3), "history"),  # type: ignore[call-arg]
        (lambda: Anderson(histroy=3), "histroy"),  # type: ignore[call-arg]
        (lambda: Anderson(history=0), "history"),
        (lambda: Anderson(ridge=-1.0), "ridge"),
        (lambda: Picard(damping=0.0), "damping"),
        (lambda: Picard(tol=-1.0), "tol"),
        (lambda: Picard(max_evaluations=0), "max_evaluations"),
        (lambda: Broyden(scope="batch"), "scope"),  # type: ignore[arg-type]
        (lambda: GMRES(max_evaluations=1), "max_evaluations"),
    ],
)
def test_impossible_options_are_errors_that_name_them(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_shapes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="leading dimension"):
        Picard(scope="prefix").solve(lambda z: z, torch.zeros(3))
    with pytest.raises(ValueError, match="shapes it is given"):
        Picard().solve(lambda z: z[:1], torch.zeros(3, 2))
    with pytest.raises(ValueError, match="floating point"):
        Picard().solve(lambda z: z, torch.zeros(3, 2, dtype=torch.long))
