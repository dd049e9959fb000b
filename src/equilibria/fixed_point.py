"""`fixed_point`: a solver and a gradient joined; and `DEQ`, the same as a module."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from equilibria.gradients import Gradient, Guarded, Implicit, forward_mode
from equilibria.gradients.base import solution_from, with_all_iterates
from equilibria.held_cell import HeldCell
from equilibria.held_map import HeldMap
from equilibria.solvers import (
    GMRES,
    Anderson,
    ConvergenceError,
    ConvergenceWarning,
    Map,
    Solution,
    Solver,
    State,
    Status,
    mapped,
)
from equilibria.solvers.state import Packing
from equilibria.surroundings import SeesToHooks, check_checkpoint, check_sharding, outside_graphs, with_backward_hooks
from equilibria.transforms import transformable

OnFailure = Literal["raise", "warn", "ignore"]

_UNSTEADY = (
    "; the map gives different values for the same state: dropout? Draw its random numbers from PyTorch's default "
    "generators, which are held still during a solve, draw them before it, or switch to evaluation mode"
)
# Files of the call machinery, which a warning points past to the user's line.
_MACHINERY = tuple(f"{Path(package).parent}{os.sep}" for package in (torch.__file__, __file__))


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
    iterates: Iterable[int] = (),
) -> Solution:
    """Solve `z = f(z)` from `z0` and make the solution differentiable.

    Under `torch.func.jvp` or `torch.autograd.forward_ad` it carries a tangent instead of a graph, with `Implicit()`.

    Args:
        f: a map from states to states of the same structure and shapes. It may close over anything, and is held still
            during the solve (see `HeldMap`).
        z0: where to start: a tensor, or a nested tuple, list, dict or dataclass of tensors that share their first
            dimension (the first two for scopes `"token"` and `"prefix"`, none for `"all"`).
        solver: how to solve; `Anderson()` when None.
        gradient: how to differentiate; `Implicit()` when None. Not used where gradients are off.
        on_failure: what to do when the solve did not converge: `"raise"` a `ConvergenceError` (which carries the
            solution), `"warn"` with a `ConvergenceWarning`, or `"ignore"` and leave it to `solution.status`. The same
            is done in the backward pass where the adjoint equation is not solved (`solution.adjoint`).
        tol: of this call, in place of the solver's.
        max_evaluations: of this call, in place of the solver's.
        iterates: numbers of iterates wanted in `solution.iterates` beside the solution, for a loss along the way (see
            `fixed_point_correction`); iterate `k` is what the solver had after `k` evaluations, 0 is the start, and
            from where it converged on it is the solution. Each that is not keeps one more evaluation for the backward
            pass. Those that a solve without success does not reach are left out.

    Returns:
        The value with its status, residual per group and statistics.

    Raises:
        ConvergenceError: the solve did not converge, where `on_failure` is `"raise"`.
        TypeError: `solver` or `gradient` is not an object that solves or differentiates.
        ValueError: an option or the shape of a state is impossible; the message names it.
    """
    _check_reaction(on_failure)
    iterates = _numbers(iterates)
    solver = _overridden(_solver(solver, "solver"), tol, max_evaluations)
    gradient = _gradient(gradient, Implicit())
    forward, backward = forward_mode.active(), torch.is_grad_enabled()
    # A compiler sees through the map, and has no memory to compare.
    held = None if torch.compiler.is_compiling() else HeldMap(f, with_graph=backward and not forward)
    f = f if held is None else held
    if forward:
        if iterates:
            raise NotImplementedError("iterates have no forward-mode derivatives; leave them out, or use backward")
        solution = forward_mode.solve_with_tangent(f, z0, solver, gradient)
    elif backward:
        solution = gradient.attach(f, z0, solver, iterates)
    else:
        iterate = solver.solve(f, z0, iterates=iterates)
        solution = solution_from(iterate, Packing.of(z0, solver.scope).unpack(iterate.value))
        solution.iterates = iterate.iterates
        solution = with_all_iterates(solution, iterates, iterate.status)
    solution.adjoint.on_failure = _ADJOINT_FAILURES[on_failure]
    if solution.status is not Status.CONVERGED and on_failure != "ignore":
        _complain(solution, held, on_failure)
    if held is not None:
        held.close()
    return solution


def _raise(message: str) -> None:
    raise ConvergenceError(message)


def _warn(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=_users_level())


# What hears of an adjoint equation that was not solved, in the backward pass.
_ADJOINT_FAILURES: dict[OnFailure, Callable[[str], None] | None] = {"raise": _raise, "warn": _warn, "ignore": None}


def _overridden(solver: Solver, tol: float | None, max_evaluations: int | None) -> Solver:
    """The solver with what was given in place of its own."""
    if tol is not None:
        solver = replace(solver, tol=tol)
    if max_evaluations is not None:
        solver = replace(solver, max_evaluations=max_evaluations)
    return solver


def _numbers(iterates: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(iterates)
    if any(number < 0 for number in numbers):
        raise ValueError(f"iterates are numbers of evaluations, at least 0; found {sorted(numbers)}")
    return numbers


def _check_reaction(on_failure: object) -> None:
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure must be one of {get_args(OnFailure)}, found {on_failure!r}")


def _solver(given: Any, role: str) -> Solver:
    """What was given, or the default; raises TypeError for what does not solve a fixed point."""
    if given is None:
        return Anderson()
    if isinstance(given, GMRES) or given is GMRES:
        raise TypeError(
            f"{role}: GMRES solves affine equations, as adjoints are (Implicit(solver=GMRES())); "
            "for a map take Anderson(), Broyden() or NewtonKrylov()"
        )
    if not isinstance(given, Solver):
        raise TypeError(f"{role} must be an object such as Anderson(tol=1e-4); {_found(given)}")
    return given


def _gradient(given: Any, usual: Gradient) -> Gradient:
    """What was given, or what is usual; raises TypeError for what does not differentiate."""
    if given is None:
        return usual
    if isinstance(given, type) or not callable(getattr(given, "attach", None)):
        raise TypeError(f"gradient must be an object such as Implicit() or Phantom(steps=5); {_found(given)}")
    return given


def _found(given: Any) -> str:
    """What stands where an object is wanted, for a message."""
    if isinstance(given, type):
        return f"found the class {given.__name__}; make one: {given.__name__}()"
    return f"found {given!r}"


def _complain(solution: Solution, held: HeldMap | None, on_failure: OnFailure) -> None:
    """Raise or warn, as asked for."""
    message = solution.explain() + _unsteadiness(held, solution)
    if on_failure == "raise":
        raise ConvergenceError(message, solution)
    warnings.warn(message, ConvergenceWarning, stacklevel=_users_level())


def _unsteadiness(held: HeldMap | None, solution: Solution) -> str:
    """The sentence about a map that does not stand still, where that may be why a solve failed; else nothing."""
    if held is None or solution.status is Status.NON_FINITE or forward_mode.active() or mapped.active():
        return ""
    return "" if held.steady(solution.value, solution.tolerance / 10) else _UNSTEADY


def _users_level() -> int:
    """The stack level, for a warning of the caller's, of the nearest line outside this package and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_MACHINERY):
        level, frame = level + 1, _outer(frame)
    return level


def _outer(frame: FrameType) -> FrameType:
    return frame.f_back or frame


class DEQ(SeesToHooks):
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
            _check_reaction(on_failure)
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell must be a torch.nn.Module (fixed_point takes any function); {_found(cell)}")
        self.cell = cell
        self.solver = _solver(solver, "solver")
        self.gradient: Gradient = _gradient(gradient, Guarded())
        self.eval_solver = _solver(eval_solver, "eval_solver") if eval_solver is not None else self.solver
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
            _warn(message)
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
