"""States of several tensors: told apart by their keys, whatever the order in which a map returns them."""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver
from equilibria.solvers.residual import relative_residual
from equilibria.solvers.state import Packing
from ways import ALL, SOLVERS, combinations, tight


class Pair(NamedTuple):
    """A state with named parts."""

    a: Tensor
    b: Tensor


@pytest.mark.parametrize(("solver", "gradient"), combinations(ALL))
def test_keys_in_another_order_are_the_same_state(solver: Solver, gradient: Gradient):
    at = torch.tensor([3.0, 1.0], dtype=torch.float64, requires_grad=True)

    def f(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"b": 0.5 * state["b"] + at[1], "a": 0.25 * state["a"] + at[0]}

    zero = torch.zeros(2, 3, 1, dtype=torch.float64)
    value = eq.fixed_point(f, {"a": zero, "b": zero}, tight(solver, torch.float64), gradient).value
    assert list(value) == ["a", "b"]
    torch.testing.assert_close(value["a"], zero + 4.0)
    torch.testing.assert_close(value["b"], zero + 2.0)
    if not isinstance(gradient, eq.JacobianFree | eq.ReuseInverse):
        (found,) = torch.autograd.grad(value["a"].mean() + 10 * value["b"].mean(), at)
        torch.testing.assert_close(found, torch.tensor([4 / 3, 20.0], dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_tangents_know_the_keys_too():
    zero = torch.zeros(2, 1, dtype=torch.float64)

    def solve(x: Tensor) -> tuple[Tensor, Tensor]:
        def f(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"b": 0.5 * state["b"] + 1, "a": 0.25 * state["a"] + x}

        value = eq.fixed_point(f, {"a": zero, "b": zero}, eq.Anderson(tol=1e-10), eq.Implicit()).value
        return value["a"], value["b"]

    a, b = torch.func.jvp(solve, (zero,), (zero + 3,))[1]
    torch.testing.assert_close(a, zero + 4)
    torch.testing.assert_close(b, zero)


@pytest.mark.parametrize("gradient", [eq.Implicit(), eq.Phantom(3, damping=0.5), eq.Unrolled(3)], ids=repr)
@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda z: {"x": z}, "found a dict of 'x'"),
        (lambda z: {"a": z, "b": z}, "found a dict of 'a', 'b'"),
        (lambda z: z, "found Tensor"),
        (lambda z: (z,), "found tuple of 1"),
        (lambda z: None, "found NoneType"),
    ],
)
def test_another_structure_is_an_error_that_names_both(gradient, returned, found):
    with pytest.raises(ValueError, match=f"expected a dict of 'a', {found}"):
        eq.fixed_point(lambda state: returned(state["a"]), {"a": torch.zeros(2, 3)}, gradient=gradient)


@pytest.mark.parametrize("kind", [Pair, namedtuple("Other", ["a", "b"])])
@pytest.mark.parametrize("gradient", [eq.Implicit(), eq.Phantom(), eq.Unrolled(60)], ids=repr)
def test_named_tuples_stay_what_they_are(kind, gradient):
    start = kind(a=torch.zeros(2, 1), b=torch.zeros(2, 1))
    value = eq.fixed_point(lambda z: kind(a=0.25 * z.a + 3, b=0.5 * z.b + 1), start, gradient=gradient, tol=1e-6).value
    assert isinstance(value, kind)
    torch.testing.assert_close(value, kind(a=torch.full((2, 1), 4.0), b=torch.full((2, 1), 2.0)))


@pytest.mark.parametrize("solver", [*SOLVERS.values(), eq.Picard(damping=0.3)], ids=repr)
def test_the_residual_is_that_of_the_returned_value_in_half_precision(solver):
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).mul(0.2).bfloat16()

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight + 1)

    z0 = torch.zeros(6, 4, 8, dtype=torch.bfloat16)
    iterate = solver.solve(f, z0)
    packing = Packing.of(z0, solver.scope)
    value = packing.unpack(iterate.value)
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(iterate.residual, relative_residual(packing.pack(f(value)), packing.pack(value)))
