"""Every solver with every gradient in both precisions: closed forms on affine maps, unrolling on nonlinear ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from equilibria.solvers.state import leaves, rebuild
from problems import Affine, affine
from ways import ALL, CONVERGENT, assert_near, combinations, tanh_map, tanh_problem, tight

DTYPES = [torch.float64, torch.float32]


def affine_gradients(solver: Solver, gradient: Gradient, dtype: torch.dtype):
    """Gradients with respect to matrix and offset of a random linear loss; and problem and loss in float64."""
    f = affine(radius=0.5, causal=True)
    matrix, offset = (x.to(dtype).requires_grad_() for x in (f.matrix, f.offset))
    loss = torch.randn(f.offset.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    solution = eq.fixed_point(Affine(matrix, offset), f.start.to(dtype), tight(solver, dtype), gradient)
    assert_near(solution.value, f.answer)
    return torch.autograd.grad((solution.value * loss.to(dtype)).sum(), (matrix, offset)), f, loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("solver", "gradient"), combinations(CONVERGENT))
def test_closed_form_on_an_affine_map(solver: Solver, gradient: Gradient, dtype: torch.dtype):
    (matrix, offset), f, loss = affine_gradients(solver, gradient, dtype)
    identity = torch.eye(f.matrix.shape[0], dtype=torch.float64)
    v = torch.linalg.solve((identity - f.matrix).mT, loss.flatten(1).mT).mT
    assert_near(offset, v.reshape(loss.shape))
    assert_near(matrix, (v.mT @ f.answer.flatten(1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("solver", "gradient"), combinations({"jacobian-free": ALL["jacobian-free"]}))
def test_jacobian_free_takes_the_incoming_gradient_as_it_is(solver: Solver, gradient: Gradient, dtype: torch.dtype):
    (matrix, offset), f, loss = affine_gradients(solver, gradient, dtype)
    torch.testing.assert_close(offset, loss.to(dtype))
    expected = loss.flatten(1).mT @ f.answer.flatten(1)
    assert_near(matrix, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("solver", "gradient"), combinations(CONVERGENT))
def test_unrolling_on_a_nonlinear_map(solver: Solver, gradient: Gradient, dtype: torch.dtype):
    weight, inputs = tanh_problem(dtype)
    f = tanh_map(weight, inputs)
    value = eq.fixed_point(f, torch.zeros_like(inputs), tight(solver, dtype), gradient).value
    found = torch.autograd.grad(value.square().sum(), (weight, inputs))
    weight, inputs = tanh_problem(torch.float64)
    z = torch.zeros_like(inputs)
    for _ in range(80):
        z = torch.tanh(z @ weight + inputs)
    expected = torch.autograd.grad(z.square().sum(), (weight, inputs))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


NESTINGS = st.recursive(
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1),
        st.tuples(inner, inner),
    ).map(lambda parts: parts if isinstance(parts, list | dict) else list(parts)),
    max_leaves=4,
)


def state_of(shape: object, batch: int, generator: torch.Generator):
    """A random state: tuples of integers are the shapes of its tensors."""
    if isinstance(shape, tuple):
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    if isinstance(shape, dict):
        return {key: state_of(part, batch, generator) for key, part in shape.items()}
    assert isinstance(shape, list)
    return [state_of(part, batch, generator) for part in shape]


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
@settings(deadline=None, max_examples=8)
@given(shape=NESTINGS, batch=st.sampled_from([0, 1, 3]), gain=st.floats(-0.6, 0.6), seed=st.integers(0, 99))
def test_any_nesting_and_any_batch(gradient: Gradient, shape: object, batch: int, gain: float, seed: int):
    offset = state_of(shape, batch, torch.Generator().manual_seed(seed))
    for leaf in leaves(offset):
        leaf.requires_grad_()
    start = rebuild(offset, (torch.zeros_like(leaf) for leaf in leaves(offset)))

    def f(z):
        pairs = zip(leaves(z), leaves(offset), strict=True)
        return rebuild(z, (gain * a + b for a, b in pairs))

    solution = eq.fixed_point(f, start, eq.Broyden(tol=1e-10), gradient)
    assert len(solution.residual) == batch
    tensors = list(leaves(offset))
    found = torch.autograd.grad([leaf.sum() for leaf in leaves(solution.value)], tensors)
    for leaf, b, g in zip(leaves(solution.value), tensors, found, strict=True):
        torch.testing.assert_close(leaf, b.detach() / (1 - gain))
        if gradient is not ALL["jacobian-free"] and gradient is not ALL["reused"]:  # these know only a part of it
            torch.testing.assert_close(g, torch.full_like(g, 1 / (1 - gain)), rtol=1e-6, atol=1e-8)
