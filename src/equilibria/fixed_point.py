"""`fixed_point`: a solver and a gradient joined; and `DEQ`, the same as a module."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from equilibria.gradients import Gradient, Implicit, forward_mode
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
from equilibria.surroundings import check_checkpoint, check_sharding, outside_graphs, with_backward_hooks
from equilibria.transforms import transformable

OnFailure = Literal["raise", "warn", "ignore"]


@outside_graphs
@transformable
def fixed_point(
    f: Map,
    z0: State,
    solver: Solver | None = None,
    gradient: Gradient | None = None,
    on_failure: OnFailure = "raise",
    *,
    tol: float | None = None,
    max_evaluations: int | None = None,
    iterates: Collection[int] = (),
) -> Solution:
    """Solve `z = f(z)` from `z0` and make the solution differentiable.

    Under `torch.func.jvp` or `torch.autograd.forward_ad` it carries a tangent instead of a graph, with `Implicit()`.

    Args:
        f: a map from states to states of the same structure and shapes. It may close over anything.
        z0: where to start: a tensor, or a nested tuple, list or dict of tensors that share their first dimension
            (the first two for scopes `"token"` and `"prefix"`).
        solver: how to solve; `Anderson()` when None.
        gradient: how to differentiate; `Implicit()` when None. Not used where gradients are off.
        on_failure: what to do when the solve did not converge: `"raise"` a `ConvergenceError` (which carries the
            solution), `"warn"` with a `ConvergenceWarning`, or `"ignore"` and leave it to `solution.status`.
        tol: of this call, in place of the solver's.
        max_evaluations: of this call, in place of the solver's.
        iterates: numbers of iterates wanted in `solution.iterates` beside the solution, for a loss along the way (see
            `fixed_point_correction`); iterate `k` is what the solver had after `k` evaluations, 0 is the start. Each
            keeps one more evaluation for the backward pass. Those that the solve does not reach are left out.

    Returns:
        The value with its status, residual per group and statistics.

    Raises:
        ConvergenceError: the solve did not converge, where `on_failure` is `"raise"`.
        ValueError: an option or the shape of a state is impossible; the message names it.
    """
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure must be one of {get_args(OnFailure)}, found {on_failure!r}")
    if any(number < 0 for number in iterates):
        raise ValueError(f"iterates are numbers of evaluations, at least 0; found {sorted(iterates)}")
    solver = _overridden(solver if solver is not None else Anderson(), tol, max_evaluations)
    gradient = gradient if gradient is not None else Implicit()
    if forward_mode.active():
        if iterates:
            raise NotImplementedError("iterates have no forward-mode derivatives; leave them out, or use backward")
        solution = forward_mode.solve_with_tangent(f, z0, solver, gradient)
    elif torch.is_grad_enabled():
        solution = gradient.attach(f, z0, solver, iterates)
    else:
        iterate = solver.solve(f, z0, iterates=iterates)
        solution = solution_from(iterate, Packing.of(z0, solver.scope).unpack(iterate.value))
        solution.iterates = iterate.iterates
    if solution.status is not Status.CONVERGED and on_failure != "ignore":
        if on_failure == "raise":
            raise ConvergenceError(solution.explain(), solution)
        warnings.warn(solution.explain(), ConvergenceWarning, stacklevel=2)
    return solution


def _overridden(solver: Solver, tol: float | None, max_evaluations: int | None) -> Solver:
    """The solver with what was given in place of its own."""
    if tol is not None:
        solver = replace(solver, tol=tol)
    if max_evaluations is not None:
        solver = replace(solver, max_evaluations=max_evaluations)
    return solver


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

    @outside_graphs
    @with_backward_hooks
    def forward(
        self,
        z0: State,
        *inputs: Tensor,
        tol: float | None = None,
        max_evaluations: int | None = None,
        iterates: Collection[int] = (),
    ) -> Solution:
        """The `Solution` from `z0`; gradients reach the cell's parameters and every input.

        Args:
            z0: where to start.
            inputs: further arguments of the cell.
            tol: of this call, in place of the solver's.
            max_evaluations: of this call, in place of the solver's.
            iterates: as for `fixed_point`.
        """
        check_checkpoint()
        check_sharding(self.cell)
        return fixed_point(
            lambda z: self.cell(z, *inputs),
            z0,
            self.solver if self.training else self.eval_solver,
            self.gradient,
            self.on_failure,
            tol=tol,
            max_evaluations=max_evaluations,
            iterates=iterates,
        )
