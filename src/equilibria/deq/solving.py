"""`fixed_point`: a solver and a gradient joined."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from equilibria.deq.arguments import checked_gradient, checked_solver, numbers, overridden
from equilibria.deq.failures import OnFailure, check_reaction, react
from equilibria.deq.held_map import HeldMap
from equilibria.deq.outcome import solution_of
from equilibria.deq.surroundings import outside_graphs
from equilibria.deq.transforms import solve_in_transforms
from equilibria.gradients import Gradient, Implicit, Solve, forward_mode
from equilibria.gradients.base import NoGradient
from equilibria.solvers import Map, Solution, Solver, State, mapped
from equilibria.solvers.state import Packing


@outside_graphs
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
    check_reaction(on_failure)
    wanted = numbers(iterates)
    solver = overridden(checked_solver(solver), tol, max_evaluations)
    gradient = checked_gradient(gradient, Implicit())
    solve = partial(_solve_held, solver=solver, gradient=gradient, on_failure=on_failure, wanted=wanted)
    return solve_in_transforms(solve, f, z0, gradient) if mapped.active() else solve(f, z0)


def _solve_held(
    f: Map, z0: State, solver: Solver, gradient: Gradient, on_failure: OnFailure, wanted: tuple[int, ...]
) -> Solution:
    """Solve with the map held still, differentiate, and react to a failure."""
    forward, backward = forward_mode.active(), torch.is_grad_enabled()
    # A compiler sees through the map, and has no memory to compare.
    held = None if torch.compiler.is_compiling() else HeldMap(f, with_graph=backward and not forward)
    f = f if held is None else held
    if forward:
        if wanted:
            raise NotImplementedError("iterates have no forward-mode derivatives; leave them out, or use backward")
        gradient = forward_mode.Tangent.of(gradient)
        z0 = forward_mode.lifted(f, z0)
    elif not backward:
        gradient = NoGradient()
    solution = _solve(f, z0, solver, gradient, wanted)
    solution.evaluations += forward
    react(on_failure, solution, held)
    if held is not None:
        held.close()
    return solution


def _solve(f: Map, z0: State, solver: Solver, gradient: Gradient, wanted: tuple[int, ...]) -> Solution:
    """Solve as far as the gradient asks for it, then let it attach itself to the solution and to every iterate."""
    if gradient.begins_at == "start":
        solve = Solve(solver, wanted)
        attached = gradient.attach(f, z0, solve)
        return solution_of(f, solve, attached, attached.iterates)
    ahead = gradient.begins_at == "proposal"
    with forward_mode.suspended() if forward_mode.active() else nullcontext():
        iterate = solver.solve(f, z0, propose=ahead, iterates=wanted)
        packing = Packing.of(z0, solver.scope)
        state = packing.unpack(iterate.value)
    solve = Solve(solver, wanted, iterate)
    proposed = replace(solve, proposal=packing.unpack(iterate.proposal)) if ahead else solve
    attached = gradient.attach(f, state, proposed)
    iterates = {number: gradient.attach(f, kept, solve).value for number, kept in iterate.iterates.items()}
    return solution_of(f, solve, attached, iterates)
