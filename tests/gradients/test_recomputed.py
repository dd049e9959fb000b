"""Gradients that keep the state alone and evaluate again: the same bits, less memory, and no wrong gradient."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import equilibria as eq
from equilibria.gradients import PullbackGradient
from equilibria.measuring.memory import Watch

Given = PullbackGradient | eq.Switching
GRADIENTS: list[Given] = [
    eq.Implicit(),
    eq.Implicit(eq.Anderson(tol=1e-6)),
    eq.Guarded(),
    eq.Neumann(),
    eq.JacobianFree(),
    eq.ReuseInverse(refine=eq.GMRES(max_evaluations=3)),
    eq.Switching(),
]


class Cell(nn.Module):
    """Dropout, batch norm and a wide hidden layer: random numbers, buffers, and much to save."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.inner = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 256))
        self.outer = nn.Linear(256, 8)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(torch.relu(self.inner(z)))
        return torch.tanh(0.3 * self.norm(self.outer(hidden) + x))


def checkpointed(gradient: Given, checkpoint: bool) -> eq.Gradient:
    if isinstance(gradient, eq.Switching):
        return replace(gradient, converged=replace(gradient.converged, checkpoint=checkpoint))
    return replace(gradient, checkpoint=checkpoint)


def layer(gradient: Given, checkpoint: bool, norm: bool = True) -> tuple[eq.DEQ, torch.Tensor]:
    """The same weights and inputs each time."""
    torch.manual_seed(0)
    solver = eq.Broyden(tol=1e-5, max_evaluations=60, scope="all" if norm else "sample")
    deq = eq.DEQ(Cell(norm), solver=solver, gradient=checkpointed(gradient, checkpoint), on_failure="ignore")
    return deq, torch.randn(16, 8, requires_grad=True)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda gradient: type(gradient).__name__)
@pytest.mark.parametrize("autocast", [False, True])
def test_bits_are_those_of_the_stored_evaluation(gradient: Given, autocast: bool) -> None:
    found = []
    for checkpoint in (False, True):
        deq, x = layer(gradient, checkpoint)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            torch.manual_seed(1)
            loss = deq(torch.zeros_like(x), x).value.square().sum()
        torch.manual_seed(2)
        buffers = [buffer.clone() for buffer in deq.buffers()]
        found.append([loss.detach(), *torch.autograd.grad(loss, [x, *deq.parameters()]), *buffers])
        assert all(torch.equal(*pair) for pair in zip(buffers, deq.buffers(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert float(found[0][1].abs().sum()) > 0


def test_only_the_state_is_saved() -> None:
    saved = {}
    for checkpoint in (False, True):
        deq, x = layer(eq.Implicit(), checkpoint, norm=False)

        def run(deq: eq.DEQ = deq, x: torch.Tensor = x) -> torch.Tensor:
            return deq(torch.zeros_like(x), x).value

        saved[checkpoint] = eq.saved_bytes(run, [x, *deq.parameters(), *deq.buffers()])
    state, hidden, weight = 16 * 8 * 4, 16 * 256 * 4, 256 * 8 * 4
    assert saved[False] > 2 * hidden
    assert state <= saved[True] < state + 2 * weight  # spectral norm's graph is of the solve, not of an evaluation


def test_an_evaluation_is_made_again_once_for_all_products() -> None:
    calls = 0

    def f(z: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(z @ weight + 1.0)

    torch.manual_seed(0)
    weight = (0.3 * torch.randn(8, 8) / 8**0.5).requires_grad_()
    solution = eq.fixed_point(f, torch.zeros(4, 8), gradient=eq.Implicit(checkpoint=True))
    before = calls
    solution.value.sum().backward(retain_graph=True)
    assert solution.adjoint.evaluations > 3
    assert calls == before + 1
    (solution.value**2).sum().backward()
    assert calls == before + 1  # a graph that is retained retains what it computed


def test_memory_is_given_back_with_the_graph() -> None:
    deq, x = layer(eq.Implicit(), True, norm=False)
    solution = deq(torch.zeros_like(x), x)

    def backward() -> None:
        solution.value.sum().backward()

    with Watch() as watch:
        backward()
    gradients = sum(p.grad.untyped_storage().nbytes() for p in [x, *deq.parameters()] if p.grad is not None)
    assert watch.peak > 2 * 16 * 256 * 4
    assert watch.held <= 2 * gradients


COLLECTED: list[Any] = [eq.Implicit(), eq.Phantom(3), eq.Unrolled(3), eq.Neumann(3), eq.JacobianFree(), eq.Guarded()]


@pytest.mark.parametrize("gradient", COLLECTED, ids=lambda way: type(way).__name__)
def test_a_graph_that_is_never_walked_is_collected(gradient: Given) -> None:
    deq, x = layer(gradient, True)

    def alive(solves: int) -> int:
        for _ in range(solves):
            deq(torch.zeros_like(x), x)
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    before = alive(2)
    assert alive(10) < before + 10


REPEATED: list[Any] = [eq.Implicit(), eq.Phantom(3), eq.Phantom(3, damping=0.5), eq.Unrolled(4), eq.Guarded()]


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("gradient", REPEATED, ids=repr)
def test_changed_weights_and_inputs_are_an_error(gradient: Given, inputs: bool) -> None:
    deq, x = layer(gradient, True)
    x = x * 1.0
    loss = deq(torch.zeros_like(x), x).value.sum()
    with torch.no_grad():
        (x if inputs else next(deq.parameters())).mul_(1.5)
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        loss.backward()


@pytest.mark.parametrize("gradient", REPEATED, ids=repr)
def test_other_weights_are_an_error(gradient: Given) -> None:
    """After `functional_call` the module has its own weights again."""
    deq, x = layer(gradient, True, norm=False)
    other = {name: 1.1 * parameter for name, parameter in deq.named_parameters()}
    loss = torch.func.functional_call(deq, other, (torch.zeros_like(x), x)).value.sum()
    with pytest.raises(RuntimeError, match="another value in the backward pass"):
        loss.backward()


@pytest.mark.parametrize(
    "gradient", [eq.Implicit(checkpoint=True), eq.Phantom(checkpoint=True), eq.Unrolled(checkpoint=True)]
)
def test_transforms_are_refused(gradient: eq.Gradient) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return eq.fixed_point(lambda z: torch.tanh(0.3 * z + x), torch.zeros(2, 3), gradient=gradient).value.sum()

    with pytest.raises(NotImplementedError, match=r"\(checkpoint=True\) does not support torch.func"):
        torch.func.grad(loss)(torch.ones(2, 3))


def test_second_derivatives_are_refused() -> None:
    with pytest.raises(ValueError, match="omit higher_order or checkpoint"):
        eq.Implicit(higher_order=True, checkpoint=True)
