"""Solvers and gradients in every combination, shared by the tests of gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from _pytest.mark import ParameterSet

import equilibria as eq
from equilibria.gradients import Gradient
from equilibria.solvers import Solver

SOLVERS: dict[str, Solver] = {
    "picard": eq.Picard(max_evaluations=1000),
    "damped": eq.Picard(max_evaluations=1000, damping=0.7),
    "anderson": eq.Anderson(max_evaluations=400),
    "anderson-prefix": eq.Anderson(max_evaluations=400, scope="prefix"),
    "anderson-token": eq.Anderson(max_evaluations=400, scope="token"),
    "broyden": eq.Broyden(max_evaluations=400),
    "newton": eq.NewtonKrylov(max_evaluations=400),
    "broyden-prefix": eq.Broyden(max_evaluations=400, scope="prefix"),
}

EXACT = eq.Implicit(eq.GMRES(tol=1e-12, max_evaluations=120, restart=60))
REUSED = {"reused-refined": eq.ReuseInverse(EXACT.solver), "reused": eq.ReuseInverse()}
CONVERGENT: dict[str, Gradient] = {
    "implicit": EXACT,
    "implicit-anderson": eq.Implicit(eq.Anderson(tol=1e-12, max_evaluations=300)),
    "implicit-remembering": eq.Implicit(EXACT.solver, memory=eq.AdjointMemory()),
    "implicit-higher": replace(EXACT, higher_order=True),
    "phantom": eq.Phantom(steps=60),
    "phantom-damped": eq.Phantom(steps=100, damping=0.7),
    "phantom-checkpointed": eq.Phantom(steps=60, checkpoint=True),
    "neumann": eq.Neumann(terms=60),
    "guarded": eq.Guarded(EXACT.solver),
    "unrolled": eq.Unrolled(steps=80),
    "unrolled-checkpointed": eq.Unrolled(steps=80, checkpoint=True),
    "reversible": eq.Reversible(steps=80, damping=0.9, keep_every=16),
    "reused-refined": REUSED["reused-refined"],
    "switching": eq.Switching(converged=EXACT, otherwise=eq.Phantom(steps=60)),
}
"""Gradients that are those of the solution, with so many steps, on maps that contract by a half."""

ALL: dict[str, Gradient] = {**CONVERGENT, "reused": REUSED["reused"], "jacobian-free": eq.JacobianFree()}


def combinations(gradients: dict[str, Gradient]) -> list[ParameterSet]:
    """Every solver with every gradient that goes with it."""
    return [
        pytest.param(solver, gradient, id=f"{solver_name}-{name}")
        for solver_name, solver in SOLVERS.items()
        for name, gradient in gradients.items()
        if isinstance(solver, eq.Broyden) or not isinstance(gradient, eq.ReuseInverse)
    ]


def tight(solver: Solver, dtype: torch.dtype) -> Solver:
    """The solver with a tolerance near what the precision allows."""
    return replace(solver, tol=1e-11 if dtype == torch.float64 else 1e-6)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equality up to what the precision of `found` allows."""
    double = found.dtype == torch.float64
    rtol, atol = (1e-7, 1e-8) if double else (1e-3, 1e-4)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


def tanh_problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs that require grad, of the contracting causal map `tanh(z @ weight + inputs)`."""
    generator = torch.Generator().manual_seed(5)
    weight = 0.25 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return weight.to(dtype).requires_grad_(), inputs.to(dtype).requires_grad_()


def tanh_map(weight: torch.Tensor, inputs: torch.Tensor, factor: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map of `tanh_problem`: `z ↦ tanh(factor · z @ weight + inputs)`."""
    return lambda z: torch.tanh(factor * (z @ weight) + inputs)
