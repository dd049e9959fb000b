"""`fixed_point`: a solver and a gradient joined; and `DEQ`, the same as a module."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from equilibria.gradients import Gradient, Implicit
from equilibria.gradients.base import solution_from
from equilibria.solvers import (
    Anderson,
    ConvergenceError,
    ConvergenceWarning,
    Map,
    Solution,
    Solver,
    State,
    Status,
)
from equilibria.solvers.state import Packing

OnFailure = Literal["raise", "warn", "ignore"]


def fixed_point(
    f: Map,
    z0: State,
    solver: Solver | None = None,
    gradient: Gradient | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Solve `z = f(z)` from `z0` and make the solution differentiable.

    Args:
        f: a map from states to states of the same structure and shapes. It may close over anything.
        z0: where to start: a tensor, or a nested tuple, list or dict of tensors that share their first dimension
            (the first two for scopes `"token"` and `"prefix"`).
        solver: how to solve; `Anderson()` when None.
        gradient: how to differentiate; `Implicit()` when None. Not used where gradients are off.
        on_failure: what to do when the solve did not converge: `"raise"` a `ConvergenceError` (which carries the
            solution), `"warn"` with a `ConvergenceWarning`, or `"ignore"` and leave it to `solution.status`.

    Returns:
        The value with its status, residual per group and statistics.
    """
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure must be one of {get_args(OnFailure)}, found {on_failure!r}")
    solver = solver if solver is not None else Anderson()
    if torch.is_grad_enabled():
        solution = (gradient if gradient is not None else Implicit()).attach(f, z0, solver)
    else:
        iterate = solver.solve(f, z0)
        solution = solution_from(iterate, Packing.of(z0, solver.scope).unpack(iterate.value))
    if solution.status is not Status.CONVERGED and on_failure != "ignore":
        if on_failure == "raise":
            raise ConvergenceError(solution.explain(), solution)
        warnings.warn(solution.explain(), ConvergenceWarning, stacklevel=2)
    return solution


class DEQ(nn.Module):
    """A deep equilibrium layer: `layer(z0, *inputs)` solves `z = cell(z, *inputs)`.

    Args:
        cell: a module `cell(z, *inputs) -> z`.
        solver: how to solve in training mode; `Anderson()` when None.
        gradient: how to differentiate; `Implicit()` when None.
        eval_solver: how to solve in evaluation mode; `solver` when None.
        on_failure: as for `fixed_point`.
    """

    def __init__(
        self,
        cell: nn.Module,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        on_failure: OnFailure = "raise",
    ) -> None:
        super().__init__()
        self.cell = cell
        self.solver = solver if solver is not None else Anderson()
        self.gradient: Gradient = gradient if gradient is not None else Implicit()
        self.eval_solver = eval_solver if eval_solver is not None else self.solver
        self.on_failure: OnFailure = on_failure

    def forward(self, z0: State, *inputs: Tensor) -> Solution:
        """The `Solution` from `z0`; gradients reach the cell's parameters and every input."""
        solver = self.solver if self.training else self.eval_solver
        return fixed_point(lambda z: self.cell(z, *inputs), z0, solver, self.gradient, self.on_failure)
