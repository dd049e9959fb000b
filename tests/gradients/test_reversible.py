"""`Reversible` against plain backpropagation through the same pair iteration, and what it says of its digits."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import equilibria as eq
from allocations import peak_bytes
from equilibria.solvers.state import leaves
from problems import affine
from ways import tanh_map, tanh_problem


def pair_iteration(f, z0, evaluations: int, damping: float):
    """The oracle: `y ← (1 − β) y + β f(z)`, then `z ← (1 − β) z + β f(y)`; at the end half of that."""
    y = z = z0
    for step in range(evaluations // 2):
        del step
        y = (1 - damping) * y + damping * f(z)
        z = (1 - damping) * z + damping * f(y)
    return (1 - damping) * y + damping * f(z) if evaluations % 2 else z


def solve(f, z0, gradient: eq.Reversible, solver=None, iterates=()) -> eq.Solution:
    return eq.fixed_point(f, z0, solver or eq.Picard(tol=0.0), gradient, on_failure="ignore", iterates=iterates)


def adjoint_numbers(solution: eq.Solution) -> tuple[eq.Status, float, float]:
    """Status, residual and reconstruction of a backward pass, the latter two of the worst group."""
    report = solution.adjoint
    assert report.status is not None
    assert report.residual is not None
    assert report.reconstruction is not None
    return report.status, float(report.residual.max()), float(report.reconstruction.max())


# Factors 1, 4 and 12: a map that contracts, one that does not, and one whose iterates jump about.
@pytest.mark.parametrize("factor", [1.0, 4.0, 12.0])
@pytest.mark.parametrize("damping", [0.3, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 7, 24])
def test_value_and_gradient_are_those_of_the_pair_iteration(steps: int, damping: float, factor: float):
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        weight, inputs = tanh_problem(dtype)
        solution = solve(tanh_map(weight, inputs, factor), torch.zeros_like(inputs), eq.Reversible(steps, damping))
        found = torch.autograd.grad(solution.value.square().sum(), (weight, inputs), materialize_grads=True)
        wide_weight, wide_inputs = tanh_problem()
        f = tanh_map(wide_weight, wide_inputs, factor)
        expected = pair_iteration(f, torch.zeros_like(wide_inputs), steps, damping)
        wanted = torch.autograd.grad(expected.square().sum(), (wide_weight, wide_inputs), materialize_grads=True)
        chaotic = factor > 4 and dtype == torch.float32  # there, float32 is float32's own path
        if chaotic and steps > 7:
            continue
        for a, b in zip((solution.value, *found), (expected, *wanted), strict=True):
            torch.testing.assert_close(a, b.to(dtype), rtol=rtol, atol=rtol * float(b.detach().abs().max()))
        assert solution.evaluations == steps + 1
        assert solution.adjoint.evaluations == steps
        assert solution.adjoint.status is eq.Status.CONVERGED


def test_what_a_map_closes_over_need_not_be_a_leaf_and_the_start_takes_a_gradient_too():
    torch.manual_seed(0)
    encoder, layer = nn.Linear(3, 4).double(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    tensors = [x, start, *encoder.parameters(), *layer.parameters()]

    def gradients(value_of) -> list[Tensor]:
        context = torch.sin(encoder(x))
        value = value_of(lambda z: torch.tanh(layer(z) * context + context), start * 2)
        # A second use of the context: its graph is one with that of the solve.
        return list(torch.autograd.grad((value * context).sum(), tensors))

    found = gradients(lambda f, z0: solve(f, z0, eq.Reversible(9)).value)
    expected = gradients(lambda f, z0: pair_iteration(f, z0, 9, 0.8))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_nested_states_of_two_precisions():
    a = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).requires_grad_()

    def f(z):
        first, second = z["first"], z["rest"][0]
        return {
            "rest": [torch.tanh(0.3 * first.sum(-1) + second.double()).float()],
            "first": torch.cos(a * first + second.double().unsqueeze(-1)),
        }

    start = {"first": torch.zeros_like(a), "rest": [torch.ones(3)]}
    solution = solve(f, start, eq.Reversible(11, 0.5))
    assert [leaf.dtype for leaf in leaves(solution.value)] == [torch.float64, torch.float32]
    found = torch.autograd.grad(torch.stack([leaf.double().sum() for leaf in leaves(solution.value)]).sum(), a)[0]
    y = z = start
    for _ in range(11):
        value = f(z)
        new = {
            "first": 0.5 * y["first"] + 0.5 * value["first"],
            "rest": [0.5 * y["rest"][0] + 0.5 * value["rest"][0]],
        }
        y, z = z, new
    expected = torch.autograd.grad(z["first"].sum() + z["rest"][0].double().sum(), a)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert adjoint_numbers(solution)[0] is eq.Status.CONVERGED


def test_what_is_kept_does_not_grow_with_the_steps():
    torch.manual_seed(0)
    wide, narrow = nn.Linear(8, 512), nn.Linear(512, 8)
    x = torch.randn(16, 8)

    def value(steps: int, keep_every: int | None = None) -> Tensor:
        f = lambda z: torch.tanh(narrow(torch.relu(wide(z))) + x)  # noqa: E731
        return solve(f, torch.zeros_like(x), eq.Reversible(steps, keep_every=keep_every)).value

    exclude = [x, *wide.parameters(), *narrow.parameters()]
    saved = {steps: eq.saved_bytes(lambda steps=steps: value(steps), exclude) for steps in (4, 40)}
    pair = 4 * 8 * x.numel()  # two states of two float64 numbers each
    assert saved[4] == saved[40] == pair
    assert eq.saved_bytes(lambda: value(40, keep_every=10), exclude) == 4 * pair
    # In both passes: one evaluation holds 2 · 16 · 512 numbers, and 36 more of them would be 2.4 MB.
    few, many = (peak_bytes(lambda steps=steps: value(steps).sum().backward()) for steps in (4, 40))
    assert many < few + 36 * 16 * 512 * 4 / 4


def test_several_passes_through_one_graph():
    weight, inputs = tanh_problem()
    solution = solve(tanh_map(weight, inputs), torch.zeros_like(inputs), eq.Reversible(6))
    first, second = (
        torch.autograd.grad(solution.value.square().sum(), (weight, inputs), retain_graph=True) for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=1e-14, atol=1e-14)
    assert solution.adjoint.evaluations == 12


def test_losses_on_iterates_alone_and_on_the_residual():
    weight, inputs = tanh_problem()
    z0 = torch.zeros_like(inputs)
    f = tanh_map(weight, inputs)
    solution = solve(f, z0, eq.Reversible(7), iterates=[0, 2, 3])
    assert list(solution.iterates) == [0, 2, 3]
    for number in (2, 3):
        expected = pair_iteration(f, z0, number, 0.8)
        torch.testing.assert_close(solution.iterates[number], expected)
        found = torch.autograd.grad(solution.iterates[number].square().sum(), weight, retain_graph=True)[0]
        torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), weight)[0])
    before = pair_iteration(f, z0, 6, 0.8)
    assert solution.tracked is not None
    losses = [(value - z).square().sum() for z, value in (solution.tracked, (before, f(before)))]
    found, expected = (torch.autograd.grad(loss, (weight, inputs), retain_graph=True) for loss in losses)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_second_derivatives():
    def penalised(value_of):
        weight, inputs = tanh_problem()
        value = value_of(tanh_map(weight, inputs), torch.zeros_like(inputs))
        (first,) = torch.autograd.grad(value.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (weight, inputs))

    found = penalised(lambda f, z0: solve(f, z0, eq.Reversible(5)).value)
    expected = penalised(lambda f, z0: pair_iteration(f, z0, 5, 0.8))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_dropout_is_one_mask_on_the_way_there_and_back():
    weight, inputs = tanh_problem()

    def f(z):
        return torch.tanh(nn.functional.dropout(z @ weight, 0.3) + inputs)

    torch.manual_seed(3)
    solution = solve(f, torch.zeros_like(inputs), eq.Reversible(8))
    torch.rand(5)
    found = torch.autograd.grad(solution.value.sum(), weight)[0]

    def same_mask(z):
        torch.manual_seed(3)
        return f(z)

    expected = torch.autograd.grad(pair_iteration(same_mask, torch.zeros_like(inputs), 8, 0.8).sum(), weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alone", [False, True])
def test_under_autocast_and_in_half_precision(alone: bool):
    """Reconstruction needs the same digits of the map; the backward pass is outside of autocast."""
    weight, inputs = tanh_problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = solve(tanh_map(weight, inputs), torch.zeros_like(inputs), eq.Reversible(12), iterates=[8])
    (solution.iterates[8] if alone else solution.value).sum().backward()
    status, _, reconstruction = adjoint_numbers(solution)
    assert status is eq.Status.CONVERGED
    assert reconstruction < 1e-12
    half_weight, half_inputs = (x.detach().bfloat16().requires_grad_() for x in (weight, inputs))
    half = solve(tanh_map(half_weight, half_inputs), torch.zeros_like(half_inputs), eq.Reversible(12))
    half.value.float().sum().backward()
    assert half.value.dtype == torch.bfloat16
    assert adjoint_numbers(half)[2] < 1e-12
    if not alone:
        # A dozen evaluations with 8 bits each.
        assert half_weight.grad is not None
        torch.testing.assert_close(half_weight.grad.float(), weight.grad, rtol=0.1, atol=0.1)


def stretched(gradient: eq.Reversible, dtype: torch.dtype = torch.float64) -> tuple[eq.Solution, float]:
    """A solve of an affine map, backpropagated, and how far the gradient of its offset is off."""
    f = affine(radius=0.5)
    f = type(f)(f.matrix.to(dtype), f.offset.to(dtype).requires_grad_())
    solution = solve(f, f.start.to(dtype), gradient)
    assert gradient.steps is not None
    found = torch.autograd.grad(solution.value.sum(), f.offset)[0].double()
    wide = type(f)(f.matrix.double(), f.offset.detach().double().requires_grad_())
    expected = pair_iteration(wide, wide.start, gradient.steps, gradient.damping)
    wanted = torch.autograd.grad(expected.sum(), wide.offset)[0]
    return solution, float((found - wanted).norm() / wanted.norm())


def test_lost_digits_are_reported_and_kept_states_bring_them_back():
    solution, error = stretched(eq.Reversible(40, 0.99))
    status, residual, reconstruction = adjoint_numbers(solution)
    assert status is eq.Status.IRREVERSIBLE
    assert "reconstruct" in status.value
    assert reconstruction > residual > 1e-3
    for keep_every in (1, 7, 10):
        solution, error = stretched(eq.Reversible(40, 0.99, keep_every))
        status, residual, reconstruction = adjoint_numbers(solution)
        assert status is eq.Status.CONVERGED
        assert residual <= reconstruction < 1e-12
        assert error < 1e-12


@pytest.mark.parametrize(
    ("dtype", "damping", "steps"),
    [(torch.float32, 0.8, 60), (torch.float32, 0.5, 130), (torch.float64, 0.8, 36), (torch.float64, 0.5, 80)],
)
def test_as_many_evaluations_as_promised_come_back(dtype: torch.dtype, damping: float, steps: int):
    status, residual, reconstruction = adjoint_numbers(stretched(eq.Reversible(steps, damping), dtype)[0])
    assert status is eq.Status.CONVERGED
    assert residual <= reconstruction < 4 * torch.finfo(dtype).eps


def test_the_bound_is_of_what_reaches_the_gradient():
    """A solve that converged long ago has forgotten its start, and so has its gradient."""
    weight, inputs = tanh_problem()
    solution = solve(tanh_map(weight, inputs), torch.zeros_like(inputs), eq.Reversible(80, 0.95))
    found = torch.autograd.grad(solution.value.sum(), weight)[0]
    status, residual, reconstruction = adjoint_numbers(solution)
    expected = torch.autograd.grad(pair_iteration(tanh_map(weight, inputs), inputs * 0, 80, 0.95).sum(), weight)[0]
    error = float((found - expected).norm() / expected.norm())
    assert reconstruction > 1
    assert error < 10 * residual < 1e-3
    assert status is eq.Status.CONVERGED


def test_a_map_that_is_another_in_the_backward_pass_is_reported():
    layer, x = nn.Linear(4, 4).double(), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    solution = solve(lambda z: torch.tanh(layer(z) + x), torch.zeros_like(x), eq.Reversible(8))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.data = parameter * 1.5
    solution.value.sum().backward()
    assert adjoint_numbers(solution)[0] is eq.Status.IRREVERSIBLE


def test_without_steps_it_goes_on_until_all_groups_are_within_the_tolerance():
    weight, inputs = tanh_problem()
    f, z0 = tanh_map(weight, inputs), torch.zeros_like(inputs)
    solver = eq.Picard(tol=1e-6, max_evaluations=90)
    solution = solve(f, z0, eq.Reversible(), solver, iterates=[3, 85])
    made = solution.evaluations - 1
    assert solution.status is eq.Status.CONVERGED
    assert 5 < made < 60
    torch.testing.assert_close(solution.value, pair_iteration(f, z0, made, 0.8))
    residual = (f(solution.value) - solution.value).flatten(1).norm(dim=1) / f(solution.value).flatten(1).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual.float().detach())
    assert solution.iterates[85] is solution.value
    found = torch.autograd.grad(solution.value.sum(), weight)[0]
    expected = torch.autograd.grad(pair_iteration(f, z0, made, 0.8).sum(), weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    short = solve(f, z0, eq.Reversible(), eq.Picard(tol=1e-6, max_evaluations=4))
    assert (short.evaluations, short.status) == (5, eq.Status.MAX_EVALUATIONS)
    torch.testing.assert_close(short.value, pair_iteration(f, z0, 4, 0.8))
    seldom = solve(f, z0, eq.Reversible(), eq.Picard(tol=1e-6, max_evaluations=90, check_every=8))
    assert seldom.evaluations % 8 == 0
    assert seldom.status is eq.Status.CONVERGED


def test_a_start_at_the_solution_still_has_a_gradient():
    weight, inputs = tanh_problem()
    f = tanh_map(weight, inputs)
    with torch.no_grad():
        start = eq.fixed_point(f, torch.zeros_like(inputs), eq.Picard(tol=1e-10, max_evaluations=200)).value
    solution = solve(f, start, eq.Reversible(), eq.Picard(tol=1e-4))
    assert bool(torch.autograd.grad(solution.value.sum(), weight)[0].any())


def test_nothing_is_held_once_the_solution_is_gone():
    """No cycle of references, which would hold a solve's memory until the collector comes."""
    weight, inputs = tanh_problem()
    gc.collect()
    gc.disable()
    try:
        context = torch.sin(inputs)
        solution = solve(tanh_map(weight, context), torch.zeros_like(inputs), eq.Reversible(4))
        watched = weakref.ref(context)
        solution.value.sum().backward(retain_graph=True)
        del solution, context
        assert watched() is None
    finally:
        gc.enable()


def test_gradient_error_and_the_layer_take_it():
    weight, inputs = tanh_problem()
    found = eq.gradient_error(
        tanh_map(weight, inputs),
        torch.zeros_like(inputs),
        eq.Picard(tol=1e-6, max_evaluations=60),
        eq.Reversible(),
        {"weight": weight},
    )
    assert found["weight"].relative_error < 1e-4


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: eq.Reversible(steps=0), "steps"),
        (lambda: eq.Reversible(damping=1.0), "damping must be at least 0 and below 1"),
        (lambda: eq.Reversible(damping=0.0), "damping"),
        (lambda: eq.Reversible(keep_every=0), "keep_every"),
        (lambda: eq.Reversible(bound=0.0), "bound"),
    ],
)
def test_impossible_options_are_errors_that_name_them(build, name: str):
    with pytest.raises(ValueError, match=name):
        build()
