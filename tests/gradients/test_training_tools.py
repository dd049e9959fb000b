"""Gradients under what training brings along: DDP, checkpointing, autocast, copies, functional calls, compilation."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import equilibria as eq
from equilibria.gradients import Gradient
from ways import ALL, EXACT, SOLVERS, tight

SOLVER = tight(SOLVERS["broyden"], torch.float64)


class Cell(nn.Module):
    """A contracting map, its hidden layer recomputed in the backward pass on request."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed, self.evaluations = checkpointed, 0
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 4)
        nn.init.orthogonal_(self.inner.weight, gain=0.7)
        nn.init.orthogonal_(self.outer.weight, gain=0.7)

    def body(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        return torch.tanh(self.outer(torch.tanh(self.inner(z))) + x)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointed:
            result = checkpoint(self.body, z, x, use_reentrant=False)
            assert isinstance(result, torch.Tensor)
            return result
        return self.body(z, x)


def layer(gradient: Gradient, checkpointed: bool = False) -> eq.DEQ:
    torch.manual_seed(0)
    return eq.DEQ(Cell(checkpointed), SOLVER, gradient).double()


def example() -> torch.Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def gradients(module: eq.DEQ, run=None) -> list[torch.Tensor]:
    x = example()
    value = (run or (lambda x: module(torch.zeros_like(x), x).value))(x)
    return list(torch.autograd.grad(value.square().sum(), [x, *module.parameters()]))


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_in_eval_mode(gradient: Gradient):
    module = layer(gradient)
    torch.testing.assert_close(gradients(module.eval()), gradients(module.train()))


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_of_a_cell_that_checkpoints(gradient: Gradient):
    torch.testing.assert_close(gradients(layer(gradient, checkpointed=True)), gradients(layer(gradient)))


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_of_a_checkpointed_layer(gradient: Gradient):
    module = layer(gradient)

    def run(x):
        return checkpoint(lambda x: module(torch.zeros_like(x), x).value, x, use_reentrant=False)

    torch.testing.assert_close(gradients(module, run), gradients(module))


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_of_copies_and_functional_calls(gradient: Gradient):
    module, x = layer(gradient), example()
    torch.testing.assert_close(gradients(copy.deepcopy(module)), gradients(module))
    if getattr(gradient, "checkpoint", isinstance(gradient, eq.Reversible)):
        pytest.skip("torch recomputes a checkpoint with the module's own parameters once functional_call is over")
    replaced = {name: (0.9 * p).detach().requires_grad_() for name, p in module.named_parameters()}
    value = torch.func.functional_call(module, replaced, (torch.zeros_like(x), x)).value
    found = torch.autograd.grad(value.square().sum(), [x, *replaced.values()])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)
    torch.testing.assert_close(list(found), gradients(module))


@pytest.mark.parametrize("gradient", ALL.values(), ids=ALL.keys())
def test_under_autocast(gradient: Gradient):
    torch.manual_seed(0)
    module = eq.DEQ(Cell(), eq.Broyden(tol=2e-2, max_evaluations=60), gradient, on_failure="ignore")
    x = example().detach().float().requires_grad_()

    def found(enabled: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = module(torch.zeros_like(x), x).value
        loss = value.float().square().sum()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, [x, *module.parameters()])])

    half, single = found(True), found(False)
    assert half.dtype == torch.float32
    assert torch.linalg.vector_norm(half - single) < 0.1 * torch.linalg.vector_norm(single)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_a_state_in_half_precision(dtype: torch.dtype):
    offset = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    solver, adjoint = eq.Picard(tol=1e-2), eq.Implicit(eq.GMRES(tol=1e-2))
    value = eq.fixed_point(lambda z: 0.5 * z + offset, torch.zeros(2, 3, dtype=dtype), solver, adjoint).value
    value.sum().backward()
    assert value.dtype == dtype
    torch.testing.assert_close(offset.grad, torch.full_like(offset, 2.0), rtol=0.05, atol=0.0)


def test_of_a_map_that_asks_for_no_gradient():
    free = eq.fixed_point(torch.cos, torch.zeros(1, 1), gradient=eq.JacobianFree())
    assert not free.value.requires_grad
    constant = torch.ones(1, 1)
    exact = eq.fixed_point(lambda z: constant, torch.zeros(1, 1))
    assert not exact.value.requires_grad


def test_of_a_state_with_a_part_that_nothing_tracked_reaches():
    a = torch.tensor([[0.5]], requires_grad=True)
    start = (torch.zeros(1, 1), torch.zeros(1, 1))
    for gradient in (eq.Implicit(), eq.Implicit(higher_order=True), eq.Neumann(30), eq.JacobianFree()):
        value = eq.fixed_point(lambda z: (a * z[0] + 1, torch.ones(1, 1)), start, eq.Anderson(tol=1e-6), gradient).value
        (found,) = torch.autograd.grad(value[0].sum() + value[1].sum(), a)
        if not isinstance(gradient, eq.JacobianFree):
            assert found.item() == pytest.approx(4.0, rel=1e-3)


def test_under_ddp(tmp_path: Path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(Path(__file__).with_name("ddp_worker.py"))]
    processes = [
        subprocess.Popen([*worker, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()


def test_of_a_compiled_cell():
    module = layer(EXACT)
    expected = gradients(module)
    # Traced and differentiated ahead of time as by the default backend, which takes half a minute to call C++.
    module.cell.forward = torch.compile(module.cell.forward, backend="aot_eager")  # type: ignore[method-assign]
    torch.testing.assert_close(gradients(module), expected)
