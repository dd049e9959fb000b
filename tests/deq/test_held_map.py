"""`HeldMap`: maps that write to their argument, return a buffer, draw random numbers or fill caches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import equilibria as eq
from equilibria.deq.held_map import HeldMap

SOLVERS = {
    "picard": eq.Picard(tol=1e-6, max_evaluations=60),
    "anderson": eq.Anderson(tol=1e-6),
    "broyden": eq.Broyden(tol=1e-6),
    "newton": eq.NewtonKrylov(tol=1e-6, products="differences"),
}
SOLVER = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
GRADIENTS = {
    "implicit": eq.Implicit(),
    "jacobian-free": eq.JacobianFree(),
    "phantom": eq.Phantom(steps=3),
    "checkpointed": eq.Phantom(steps=3, checkpoint=True),
    "switching": eq.Switching(),
    "unrolled": eq.Unrolled(steps=30),
}
GRADIENT = pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)


def in_place(z: Tensor) -> Tensor:
    return z.mul_(0.5).add_(1.0)


def in_place_on_a_row(z: Tensor) -> Tensor:
    z[:, 0] = 0.5 * z[:, 0] + 1.0
    return torch.stack([z[:, 0], 0.5 * z[:, 1] + 1.0], dim=1)


def returning(buffers: int, within: bool = False) -> Callable[[Tensor], Tensor]:
    """A map that returns so many buffers of its own in turn: one storage each, or parts of one."""
    memory = list(torch.zeros(buffers, 1, 2)) if within else [torch.zeros(1, 2) for _ in range(buffers)]
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.mul(z, 0.5, out=memory[calls % buffers]).add_(1.0)

    return f


class TestMemory:
    @SOLVER
    @pytest.mark.parametrize("f", [in_place, in_place_on_a_row])
    def test_a_map_may_write_to_its_argument(self, f, solver):
        z0 = torch.zeros(1, 2)
        with torch.no_grad():
            solution = eq.fixed_point(f, z0, solver)
        torch.testing.assert_close(solution.value, torch.full((1, 2), 2.0))
        assert not z0.any()

    @SOLVER
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_a_map_may_return_its_own_buffer(self, solver, mode):
        f = returning(1)
        with mode():
            solution = eq.fixed_point(torch.no_grad()(f), torch.zeros(1, 2), solver)
        torch.testing.assert_close(solution.value, torch.full((1, 2), 2.0))

    @SOLVER
    @pytest.mark.parametrize("f", [in_place, returning(1)])
    def test_in_inference_mode(self, f, solver):
        with torch.inference_mode():
            solution = eq.fixed_point(f, torch.zeros(1, 2), solver)
        torch.testing.assert_close(solution.value, torch.full((1, 2), 2.0))

    @pytest.mark.parametrize("within", [False, True])
    def test_two_buffers_in_turn_are_right_and_more_are_an_error(self, within):
        with torch.no_grad():
            value = eq.fixed_point(returning(2, within), torch.zeros(1, 2), SOLVERS["picard"]).value
            torch.testing.assert_close(value, torch.full((1, 2), 2.0))
            if within:
                value = eq.fixed_point(returning(3, within), torch.zeros(1, 2), SOLVERS["picard"]).value
                torch.testing.assert_close(value, torch.full((1, 2), 2.0))
            else:
                with pytest.raises(RuntimeError, match=r"evaluation 4 .* return a copy"):
                    eq.fixed_point(returning(3), torch.zeros(1, 2), SOLVERS["picard"])

    def test_writing_late_is_an_error(self):
        calls = 0

        def f(z):
            nonlocal calls
            calls += 1
            return in_place(z) if calls > 3 else 0.5 * z + 1.0

        with pytest.raises(RuntimeError, match=r"wrote to its argument in evaluation 4 .*clone"), torch.no_grad():
            eq.fixed_point(f, torch.zeros(1, 2), SOLVERS["picard"])

    @GRADIENT
    def test_a_leading_activation_in_place_has_the_gradient_of_one_that_is_not(self, gradient):
        def solved(inplace: bool) -> list[Tensor]:
            torch.manual_seed(0)
            linear = nn.Linear(4, 4).double()
            cell = nn.Sequential(nn.ReLU(inplace=inplace), linear)
            with torch.no_grad():
                linear.weight.mul_(0.5)
            z0 = torch.ones(3, 4, dtype=torch.float64)
            eq.fixed_point(cell, z0, eq.Anderson(tol=1e-9), gradient, "ignore").value.square().sum().backward()
            assert torch.equal(z0, torch.ones_like(z0))
            return [parameter.grad for parameter in cell.parameters() if parameter.grad is not None]

        torch.testing.assert_close(solved(True), solved(False))

    def test_a_leaf_that_passes_through_or_is_constant_is_no_buffer(self):
        constant = torch.ones(2, 3)

        def f(state):
            return {"z": 0.5 * state["z"] + constant, "same": state["same"], "constant": constant}

        start = {"z": torch.zeros(2, 3), "same": torch.ones(2, 3), "constant": torch.zeros(2, 3)}
        with torch.no_grad():
            value = eq.fixed_point(f, start, SOLVERS["picard"]).value
        torch.testing.assert_close(value["z"], torch.full((2, 3), 2.0))
        torch.testing.assert_close(eq.fixed_point(lambda z: z, constant).value, constant)

    def test_newton_krylov_starts_from_one_row_for_the_batch(self):
        start = torch.zeros(1, 3).expand(4, 3)
        value = eq.fixed_point(lambda z: 0.5 * z + 1, start, eq.NewtonKrylov()).value
        torch.testing.assert_close(value, torch.full((4, 3), 2.0))


class TestRandomNumbers:
    @GRADIENT
    def test_a_mask_is_drawn_once_per_solve(self, gradient):
        torch.manual_seed(1)
        z0 = torch.zeros(4, 8)
        before = torch.get_rng_state()
        solution = eq.fixed_point(
            lambda z: nn.functional.dropout(0.3 * z + 1.0, 0.5), z0, eq.Picard(tol=1e-6), gradient
        )
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        mask = nn.functional.dropout(torch.ones(4, 8), 0.5)
        assert torch.equal(after, torch.get_rng_state())
        torch.testing.assert_close(solution.value, torch.where(mask > 0, 2.0 / (1.0 - 0.6), 0.0), rtol=1e-4, atol=1e-4)

    def test_masks_of_two_solves_differ(self):
        torch.manual_seed(1)
        first, second = (
            eq.fixed_point(lambda z: nn.functional.dropout(0.3 * z + 1.0, 0.5), torch.zeros(4, 8)).value
            for _ in range(2)
        )
        assert not torch.equal(first > 0, second > 0)

    def test_a_map_that_draws_none_leaves_the_generator_alone(self):
        before = torch.get_rng_state()
        eq.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(1, 2))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("reaction", ["raise", "warn"])
    def test_a_generator_of_its_own_is_named_when_the_solve_fails(self, reaction):
        generator = torch.Generator()

        def f(z):
            return 0.5 * z + torch.rand(z.shape, generator=generator)

        expected = pytest.raises(eq.ConvergenceError, match="different values for the same state: dropout")
        if reaction == "warn":
            expected = pytest.warns(eq.ConvergenceWarning, match="different values for the same state: dropout")
        with expected:
            eq.fixed_point(f, torch.zeros(2, 2), on_failure=reaction)

    def test_a_map_that_stands_still_is_not_blamed(self):
        with pytest.raises(eq.ConvergenceError) as caught:
            eq.fixed_point(lambda z: z + nn.functional.dropout(torch.ones_like(z)), torch.zeros(2, 2))
        assert "different values" not in str(caught.value)


def normed(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    linear = nn.Linear(4, 4).double()
    wrap = {
        "weight": parametrizations.weight_norm,
        "spectral": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
    }
    return nn.Sequential(wrap[kind](linear), nn.Tanh()).double().eval()


class TestCaches:
    @GRADIENT
    @pytest.mark.parametrize("kind", ["weight", "spectral", "orthogonal"])
    def test_cached_parametrizations_keep_their_gradient(self, kind, gradient):
        if gradient in (GRADIENTS["checkpointed"], GRADIENTS["switching"]):
            pytest.skip("a cache filled by one pass and gone in the next is nothing to recompute from")

        def gradients(cached: bool) -> list[Tensor]:
            cell = normed(kind)
            x = torch.ones(2, 4, dtype=torch.float64)

            def solve() -> Tensor:
                solver = eq.Anderson(tol=1e-9, max_evaluations=100)
                return eq.fixed_point(lambda z: 0.8 * cell(z) + x, x, solver, gradient, "ignore").value

            if cached:
                with parametrize.cached():
                    value = solve()
            else:
                value = solve()
            value.square().sum().backward()
            return [parameter.grad for parameter in cell.parameters() if parameter.grad is not None]

        plain, cached = gradients(False), gradients(True)
        assert len(plain) == len(cached) > 1
        torch.testing.assert_close(cached, plain)

    @GRADIENT
    def test_a_cache_of_ones_own_keeps_its_gradient(self, gradient):
        def gradients(caching: bool) -> tuple[Tensor, ...]:
            raw = torch.full((3, 3), 0.5, dtype=torch.float64, requires_grad=True)
            x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
            kept: list[tuple[Tensor, Tensor]] = []

            def f(z: Tensor) -> Tensor:
                if not kept or not caching:
                    kept.append((raw / raw.norm(), x.exp()))
                weight, injection = kept[-1]
                return 0.5 * torch.tanh(z @ weight) + injection

            start = torch.zeros(2, 3, dtype=torch.float64)
            if gradient is GRADIENTS["checkpointed"] and caching:
                f(start)  # outside, so that the recomputation does the same as the first pass
            solution = eq.fixed_point(f, start, eq.Anderson(tol=1e-9), gradient)
            return torch.autograd.grad(solution.value.sum(), (raw, x))

        torch.testing.assert_close(gradients(True), gradients(False))

    def test_casts_that_autocast_keeps_have_a_graph(self):
        linear = nn.Linear(4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            value = eq.fixed_point(lambda z: 0.5 * linear(z).float().tanh() + 1.0, torch.zeros(2, 4), tol=1e-2).value
        value.sum().backward()
        assert linear.weight.grad is not None
        assert bool(linear.weight.grad.any())

    def test_the_graph_of_the_first_evaluation_is_freed(self):
        weight = torch.full((4, 4), 0.1, requires_grad=True)
        alive: list[weakref.ref[Tensor]] = []

        def f(z):
            assert not alive or alive[0]() is None
            product = z @ weight
            alive.append(weakref.ref(product))
            return product + 1.0

        gc.disable()
        try:
            eq.fixed_point(f, torch.zeros(2, 4), SOLVERS["picard"])
        finally:
            gc.enable()
        assert len(alive) > 2

    def test_without_gradients_nothing_is_tracked(self):
        seen = []

        def f(z):
            seen.append((torch.is_grad_enabled(), z.requires_grad))
            return 0.5 * z + 1.0

        with torch.no_grad():
            eq.fixed_point(f, torch.zeros(1, 2))
        assert set(seen) == {(False, False)}


@dataclass(frozen=True)
class Pair:
    z: Tensor
    others: tuple[Tensor, ...]


class Attributes(dict):
    __getattr__ = dict.__getitem__


class TestStructures:
    @SOLVER
    def test_a_dataclass_keeps_its_type(self, solver):
        start = Pair(torch.zeros(2, 3), (torch.zeros(2),))
        solution = eq.fixed_point(lambda s: Pair(0.5 * s.z + 1, (0.25 * s.others[0] + s.z[:, 0],)), start, solver)
        assert isinstance(solution.value, Pair)
        torch.testing.assert_close(solution.value.z, torch.full((2, 3), 2.0))
        torch.testing.assert_close(solution.value.others[0], torch.full((2,), 8 / 3))

    def test_a_subclass_of_dict_keeps_its_type(self):
        solution = eq.fixed_point(lambda s: Attributes(a=0.5 * s.a + 1), Attributes(a=torch.zeros(1, 2)))
        assert type(solution.value) is Attributes
        torch.testing.assert_close(solution.value.a, torch.full((1, 2), 2.0), rtol=1e-3, atol=0.0)

    def test_complex_values_of_a_real_state_are_an_error(self):
        with pytest.raises(ValueError, match=r"complex64 for a state of torch\.float32"):
            eq.fixed_point(lambda z: 0.5 * z + 1j, torch.zeros(1, 2))

    def test_a_functional_transform_sees_through(self):
        held = HeldMap(lambda z: 0.5 * z, with_graph=True)
        doubled = torch.func.vmap(held)(torch.ones(3, 2))
        torch.testing.assert_close(doubled, torch.full((3, 2), 0.5))
