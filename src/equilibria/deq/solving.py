"""`fixed_point`: a solver and a gradient joined."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from equilibria.deq.failures import OnFailure, react
from equilibria.deq.held_map import HeldMap
from equilibria.deq.surroundings import outside_graphs
from equilibria.gradients import Attached, Gradient, Implicit, Solve, forward_mode
from equilibria.gradients.base import NoGradient
from equilibria.ranges import found, one_of
from equilibria.solvers import GMRES, Anderson, Map, Outcome, Solution, Solver, State, Status, mapped
from equilibria.solvers.residual import Gauge
from equilibria.solvers.solution import worst
from equilibria.solvers.state import Packing, detach

_FIGURES = [field.name for field in fields(Outcome) if field.name not in ("value", "iterates")]


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
            solution), `"warn"` with a `ConvergenceWarning`, or `"ignore"` it and leave it to `solution.status`. The
            same holds in the backward pass for the adjoint equation (`solution.adjoint`).
        tol, max_evaluations: of this call, in place of the solver's.
        iterates: numbers of iterates wanted in `solution.iterates` beside the solution, for a loss along the way (see
            `fixed_point_correction`). Iterate `k` is the state after `k` evaluations, 0 the start; from convergence on
            it is the solution. Each other one keeps one more evaluation for the backward pass. Those that a failed
            solve did not reach are missing.

    Raises:
        ConvergenceError: the solve did not converge, where `on_failure` is `"raise"`.
        TypeError: `solver` or `gradient` is not an object that solves or differentiates.
        ValueError: an option or the shape of a state is impossible; the message names it.
    """
    one_of(OnFailure, on_failure=on_failure)
    if not callable(f):
        raise TypeError(f"f must be a function, as in fixed_point(f, z0); found {type(f).__name__}")
    wanted = tuple(iterates)
    if any(number < 0 for number in wanted):
        raise ValueError(f"iterates are numbers of evaluations, at least 0; found {sorted(wanted)}")
    given = {"tol": tol, "max_evaluations": max_evaluations}
    given = {name: value for name, value in given.items() if value is not None}
    solver = checked_solver(solver, Anderson())
    solver = replace(solver, **given) if given else solver
    gradient = checked_gradient(gradient, Implicit())
    solve = partial(_solve_held, solver=solver, gradient=gradient, on_failure=on_failure, wanted=wanted)
    return _solve_in_transforms(solve, f, z0, gradient) if mapped.active() else solve(f, z0)


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
            raise NotImplementedError("iterates have no forward-mode derivatives; drop them, or use backward")
        gradient = forward_mode.Tangent.of(gradient)
        z0 = forward_mode.lifted(f, z0)
    elif not backward:
        gradient = NoGradient()
    solution = _solve(f, z0, solver, gradient, wanted)
    if forward:
        solution.count_probe()
    react(on_failure, solution, held)
    if held is not None:
        held.close()
    return solution


def _solve(f: Map, z0: State, solver: Solver, gradient: Gradient, wanted: tuple[int, ...]) -> Solution:
    """Solve as far as the gradient needs, then attach it to the solution and to every iterate."""
    if gradient.begins_at == "start":
        solve = Solve(solver, wanted)
        attached = gradient.attach(f, z0, solve)
        return _solution_of(f, solve, attached, attached.iterates)
    ahead = gradient.begins_at == "proposal"
    with forward_mode.suspended() if forward_mode.active() else nullcontext():
        iterate = solver.solve(f, z0, propose=ahead, iterates=wanted)
        packing = Packing.of(z0, solver.scope)
        state = packing.unpack(iterate.value)
    solve = Solve(solver, wanted, iterate)
    proposed = replace(solve, proposal=packing.unpack(iterate.proposal)) if ahead else solve
    attached = gradient.attach(f, state, proposed)
    iterates = {number: gradient.attach(f, kept, solve).value for number, kept in iterate.iterates.items()}
    return _solution_of(f, solve, attached, iterates)


def _solution_of(f: Map, solve: Solve, attached: Attached, iterates: dict[int, State]) -> Solution:
    """What `fixed_point` returns, from the attached solution of a solve and the wanted iterates that were reached.
    Iterates beyond the convergence of the solve are the solution, with its graph."""
    ended = solve.iterate
    if ended is None or attached.steps:
        ended = _measured_again(f, solve, attached)
    figures = {name: getattr(ended, name) for name in _FIGURES}
    solution = Solution(
        value=attached.value, tracked=attached.tracked, adjoint=solve.report, iterates=iterates, **figures
    )
    if (solve.iterate or solution).status is Status.CONVERGED:
        for number in solve.wanted:
            solution.iterates.setdefault(number, solution.value)
    return solution


@torch.no_grad()
def _measured_again(f: Map, solve: Solve, attached: Attached) -> Outcome:
    """The figures of a value beyond that of the solve, or without one."""
    solver, iterate = solve.solver, solve.iterate
    assert attached.first is not None
    value = detach(attached.value)
    gauge = iterate.gauge if iterate is not None else None
    if gauge is None:
        packing = Packing.of(value, solver.scope)
        gauge = Gauge(packing, solver.criterion, solver.tol)
        began, value_there = (packing.pack(detach(state)) for state in attached.first)
        gauge.begin(began, value_there, look=not mapped.active())
    pack = gauge.packing.pack
    z, f_z = pack(value), pack(f(value) if attached.f_value is None else attached.f_value)
    residual, size, difference = gauge.measure(f_z, f_z - z)
    gauge.note(gauge.total(gauge.norms(torch.sub(*(pack(detach(state)) for state in attached.first)))))
    gauge.note(difference)
    converged = (residual <= solver.tol) & ~gauge.grown(size, difference)
    astray = ~converged & ((residual <= solver.tol) | gauge.astray(size, difference))
    evaluations = (iterate.evaluations if iterate is not None else 0) + attached.steps + 1
    settled = torch.full_like(residual, evaluations, dtype=torch.int32)
    if iterate is not None:
        settled = torch.where(converged & iterate.converged, iterate.group_evaluations, settled)
    return Outcome(
        value=value,
        status=_status(residual, converged, astray, iterate.status if iterate is not None else None),
        residual=residual,
        converged=converged,
        tolerance=solver.tol,
        evaluations=evaluations,
        trace=[*(iterate.trace if iterate is not None else []), worst(residual)],
        group_evaluations=settled,
        group_trace=iterate.group_trace if iterate is not None else None,
    )


def _status(residual: Tensor, converged: Tensor, astray: Tensor, before: Status | None) -> Status:
    """How it ended, after a solve that ended as `before`."""
    # One synchronisation with the device for all three.
    finite_G, astray_G, done_G = (mapped.plain(part) for part in (torch.isfinite(residual), astray, converged))
    finite, some_astray, done = torch.stack([finite_G.all(), astray_G.any(), done_G.all()]).tolist()
    if not finite:
        return Status.NON_FINITE
    if done:
        return Status.CONVERGED
    if some_astray:
        return Status.DIVERGED
    return Status.MAX_EVALUATIONS if before in (None, Status.CONVERGED) else before


def _solve_in_transforms(solve: Callable[[Map, State], Solution], f: Map, z0: State, gradient: Gradient) -> Solution:
    """`solve(f, z0)` inside transforms of `torch.func`; where `vmap` is innermost, its dimensions join the batch."""
    _check_transforms(gradient)
    levels = mapped.mapped_last()
    if not levels:
        return solve(f, z0)
    mapping = mapped.Mapping.of(f, z0, levels[0], levels[-1])
    solution = solve(mapping.flat_map(f), mapping.flat_state(z0))
    solution.count_probe()
    trace, solution.group_trace = solution.group_trace, None
    solution = _pytree.tree_map_only(Tensor, mapping.mapped, solution)
    solution.group_trace = mapping.mapped_trace(trace)
    return solution


def _check_transforms(gradient: Gradient) -> None:
    if forward_mode.active() and mapped.differentiated() is not None:
        raise NotImplementedError(
            "forward and reverse mode cannot be nested around a fixed point; for second derivatives take "
            "torch.autograd.grad with create_graph=True and gradient=Implicit(higher_order=True)"
        )
    if not gradient.in_transforms:
        name = type(gradient).__name__
        what = f"{name}(checkpoint=True)" if getattr(gradient, "checkpoint", False) else name
        raise NotImplementedError(f"{what} does not support torch.func transforms; take Implicit()")
    if isinstance(gradient, Implicit) and gradient.higher_order and mapped.differentiated() is not None:
        raise NotImplementedError(
            "Implicit(higher_order=True) does not support torch.func transforms; take "
            "torch.autograd.grad with create_graph=True, or Implicit()"
        )


def checked_solver(given: Any, default: Solver | None = None, role: str = "solver") -> Solver:
    """What was given, or the default for None; raises TypeError for what cannot solve a fixed point."""
    if given is None and default is not None:
        return default
    if isinstance(given, GMRES) or given is GMRES:
        raise TypeError(
            f"{role}: GMRES solves affine equations, as adjoints are (Implicit(solver=GMRES())); "
            "for a map take Anderson(), Broyden() or NewtonKrylov()"
        )
    if isinstance(given, Gradient):
        name = type(given).__name__
        raise TypeError(f"{role}: {name} is a gradient, not a solver; give it by name: gradient={name}(...)")
    if not isinstance(given, Solver):
        raise TypeError(f"{role} must be an object such as Anderson(tol=1e-4); {found(given)}")
    return given


def checked_gradient(given: Any, default: Gradient | None = None) -> Gradient:
    """What was given, or the default for None; raises TypeError for what is not a `Gradient`."""
    if given is None and default is not None:
        return default
    if not isinstance(given, Gradient):
        raise TypeError(f"gradient must be an object such as Implicit() or Phantom(steps=5); {found(given)}")
    return given
