"""`DEQ`: a fixed point as a module."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equilibria.deq.failures import OnFailure, warn
from equilibria.deq.held_cell import HeldCell, explain_call
from equilibria.deq.solving import checked_gradient, checked_solver, fixed_point
from equilibria.deq.surroundings import (
    HandlesBackwardHooks,
    check_checkpoint,
    check_sharding,
    outside_graphs,
    with_backward_hooks,
)
from equilibria.gradients import Gradient, Guarded
from equilibria.ranges import found, one_of
from equilibria.solvers import Anderson, ConvergenceError, Solution, Solver, State, Status


class DEQ(HandlesBackwardHooks):
    """A deep equilibrium layer: `layer(z0, *inputs, **keywords)` solves `z = cell(z, *inputs, **keywords)`.

    During a solve the cell is held still: parametrized weights are computed once, its buffers (power iterations, batch
    norm) are updated once, and dropout masks are drawn once.

    Args:
        cell: a module `cell(z, *inputs, **keywords) -> z`.
        solver: how to solve in training mode; `Anderson()` when None.
        gradient: how to differentiate; `Guarded()` when None, which is `Implicit` where solves succeed, and bounded
            where they do not.
        eval_solver: how to solve in evaluation mode; `solver` when None.
        on_failure: as for `fixed_point`. With None, a failed solve in training mode warns the first time and is counted
            in `failures`; in evaluation mode it warns each time.
        start: `start(*inputs, **keywords)` is where to start when `z0` is None. Without it that is
            `cell.initial_state(*inputs, **keywords)` if the cell has one, and else zeros like the first tensor among
            the inputs.

    Attributes:
        failures: solves in training mode that did not converge, forward or adjoint, since the layer was made, whatever
            `on_failure` says; not in `state_dict`.
    """

    def __init__(
        self,
        cell: nn.Module,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        on_failure: OnFailure | None = None,
        start: Callable[..., State] | None = None,
    ) -> None:
        super().__init__()
        one_of(OnFailure, on_failure=on_failure)
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell must be a torch.nn.Module (fixed_point takes any function); {found(cell)}")
        self.cell = cell
        self.solver = checked_solver(solver, Anderson())
        self.gradient: Gradient = checked_gradient(gradient, Guarded())
        self.eval_solver = checked_solver(eval_solver, self.solver, "eval_solver")
        self.on_failure: OnFailure | None = on_failure
        self.start = start
        self.failures = 0
        self._updated: dict[tuple[bool, ...], frozenset[str]] = {}

    @outside_graphs
    @with_backward_hooks
    def forward(
        self,
        z0: State = None,
        *inputs: Any,
        tol: float | None = None,
        max_evaluations: int | None = None,
        iterates: Iterable[int] = (),
        **keywords: Any,
    ) -> Solution:
        """The `Solution` from `z0`; gradients reach the cell's parameters and every input.

        Args:
            z0: where to start; by default as the layer's `start` says.
            inputs, keywords: further arguments of the cell; the names of the arguments here are not passed on.
            tol, max_evaluations, iterates: as for `fixed_point`.
        """
        check_checkpoint()
        check_sharding(self.cell)
        if z0 is None:
            z0 = self._start(inputs, keywords)
        modes = tuple(module.training for module in self.cell.modules())  # a batch norm updates in one only
        with HeldCell(self.cell, inputs, keywords, self._updated.get(modes)) as held:
            solver = self.solver if self.training else self.eval_solver
            options: dict[str, Any] = {"tol": tol, "max_evaluations": max_evaluations, "iterates": iterates}
            reaction = self.on_failure or ("ignore" if self.training and self.failures else "warn")
            try:
                solution = fixed_point(held, z0, solver, self.gradient, reaction, **options)
            except ConvergenceError:
                self.failures += self.training
                raise
            except TypeError as problem:
                explain_call(problem, self.cell, z0, *inputs, **keywords)
                raise
        self._updated[modes] = held.updated
        if self.training:
            self.failures += solution.status is not Status.CONVERGED or solution.adjoint.failure is not None
            solution.adjoint.on_failure = partial(self._adjoint_failed, solution.adjoint.on_failure)
        return solution

    def _adjoint_failed(self, reaction: Callable[[str], None] | None, message: str) -> None:
        """As for a failed solve: count, and react; where nothing was said about that, warn the first time."""
        if self.on_failure is None:
            reaction = None if self.failures else warn
        self.failures += 1
        if reaction is not None:
            reaction(message)

    def extra_repr(self) -> str:
        """The solver, the gradient, and other non-default options."""
        parts = [f"solver={self.solver!r}", f"gradient={self.gradient!r}"]
        if self.eval_solver is not self.solver:
            parts.append(f"eval_solver={self.eval_solver!r}")
        if self.on_failure is not None:
            parts.append(f"on_failure={self.on_failure!r}")
        return ",\n".join(parts)

    def _start(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> State:
        start = self.start or getattr(self.cell, "initial_state", None)
        if start is not None:
            return start(*inputs, **keywords)
        first = next((part for part in (*inputs, *keywords.values()) if isinstance(part, Tensor)), None)
        if first is None:
            given = ", ".join(type(part).__name__ for part in (*inputs, *keywords.values())) or "no input"
            raise ValueError(f"z0 is None and no input is a tensor; pass z0, or start= to DEQ; found {given}")
        if not first.is_floating_point() and not first.is_complex():
            raise ValueError(
                f"z0 is None and the first input is {first.dtype}, which is not a state; pass z0, or start= to DEQ"
            )
        return torch.zeros_like(first)
