"""`DEQ`: a fixed point as a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from equilibria.deq.arguments import checked_gradient, checked_solver, found
from equilibria.deq.failures import OnFailure, check_reaction, warn
from equilibria.deq.held_cell import HeldCell
from equilibria.deq.solving import fixed_point
from equilibria.deq.surroundings import (
    HandlesBackwardHooks,
    check_checkpoint,
    check_sharding,
    outside_graphs,
    with_backward_hooks,
)
from equilibria.gradients import Gradient, Guarded
from equilibria.solvers import Solution, Solver, State, Status


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
        on_failure: as for `fixed_point`. None is for training without a thought: in training mode a solve that fell
            short warns the first time and is counted in `failures`, in evaluation mode it warns each time.
        start: `start(*inputs, **keywords)` is where to start when `z0` is None. Without it that is
            `cell.initial_state(*inputs, **keywords)` if the cell has one, and else zeros like the first tensor among
            the inputs.

    Attributes:
        failures: solves in training mode that did not converge, forward or adjoint, since the layer was made; not in
            `state_dict`.

    Raises:
        TypeError, ValueError: an argument is impossible; the message names it.
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
        if on_failure is not None:
            check_reaction(on_failure)
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell must be a torch.nn.Module (fixed_point takes any function); {found(cell)}")
        self.cell = cell
        self.solver = checked_solver(solver)
        self.gradient: Gradient = checked_gradient(gradient, Guarded())
        self.eval_solver = checked_solver(eval_solver, "eval_solver") if eval_solver is not None else self.solver
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
            z0: where to start; None, or left out where all inputs have names, to start as the layer's `start` says.
            inputs, keywords: further arguments of the cell; the names of the arguments here are not passed on.
            tol: of this call, in place of the solver's.
            max_evaluations: of this call, in place of the solver's.
            iterates: as for `fixed_point`.
        """
        check_checkpoint()
        check_sharding(self.cell)
        if z0 is None:
            z0 = self._start(inputs, keywords)
        modes = tuple(module.training for module in self.cell.modules())  # a batch norm updates in one only
        with HeldCell(self.cell, inputs, keywords, self._updated.get(modes)) as held:
            solution = fixed_point(
                held,
                z0,
                self.solver if self.training else self.eval_solver,
                self.gradient,
                self._reaction(),
                tol=tol,
                max_evaluations=max_evaluations,
                iterates=iterates,
            )
        self._updated[modes] = held.updated
        if self.training and solution.status is not Status.CONVERGED:
            self.failures += 1
        if self.training and self.on_failure is None:
            solution.adjoint.on_failure = self._adjoint_failed
        return solution

    def _adjoint_failed(self, message: str) -> None:
        """As for a solve that fell short: warn the first time, and count."""
        if not self.failures:
            warn(message)
        self.failures += 1

    def extra_repr(self) -> str:
        """The solver, the gradient, and what else is not the default."""
        parts = [f"solver={self.solver!r}", f"gradient={self.gradient!r}"]
        if self.eval_solver is not self.solver:
            parts.append(f"eval_solver={self.eval_solver!r}")
        if self.on_failure is not None:
            parts.append(f"on_failure={self.on_failure!r}")
        return ",\n".join(parts)

    def _reaction(self) -> OnFailure:
        """What a failed solve does now."""
        if self.on_failure is not None:
            return self.on_failure
        return "ignore" if self.training and self.failures else "warn"

    def _start(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> State:
        """Where to start when nothing is given."""
        start = self.start or getattr(self.cell, "initial_state", None)
        if start is not None:
            return start(*inputs, **keywords)
        first = next((part for part in (*inputs, *keywords.values()) if isinstance(part, Tensor)), None)
        if first is None:
            raise ValueError("z0 is None and no input is a tensor; pass z0, or start= to DEQ")
        if not first.is_floating_point() and not first.is_complex():
            raise ValueError(
                f"z0 is None and the first input is {first.dtype}, which is not a state; pass z0, or start= to DEQ"
            )
        return torch.zeros_like(first)
