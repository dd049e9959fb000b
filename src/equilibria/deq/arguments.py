"""The arguments of `fixed_point` and `DEQ`, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from equilibria.gradients import Gradient
from equilibria.solvers import GMRES, Anderson, Solver


def checked_solver(given: Any, role: str = "solver") -> Solver:
    """What was given, or the default; raises TypeError for what does not solve a fixed point."""
    if given is None:
        return Anderson()
    if isinstance(given, GMRES) or given is GMRES:
        raise TypeError(
            f"{role}: GMRES solves affine equations, as adjoints are (Implicit(solver=GMRES())); "
            "for a map take Anderson(), Broyden() or NewtonKrylov()"
        )
    if not isinstance(given, Solver):
        raise TypeError(f"{role} must be an object such as Anderson(tol=1e-4); {found(given)}")
    return given


def checked_gradient(given: Any, default: Gradient) -> Gradient:
    """What was given, or the default; raises TypeError for what does not differentiate."""
    if given is None:
        return default
    if not isinstance(given, Gradient):
        raise TypeError(f"gradient must be an object such as Implicit() or Phantom(steps=5); {found(given)}")
    return given


def overridden(solver: Solver, tol: float | None, max_evaluations: int | None) -> Solver:
    """The solver with what was given in place of its own."""
    given = {"tol": tol, "max_evaluations": max_evaluations}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(solver, **given) if given else solver


def numbers(iterates: Iterable[int]) -> tuple[int, ...]:
    """The numbers of wanted iterates; raises ValueError for a negative one."""
    wanted = tuple(iterates)
    if any(number < 0 for number in wanted):
        raise ValueError(f"iterates are numbers of evaluations, at least 0; found {sorted(wanted)}")
    return wanted


def found(given: Any) -> str:
    """What stands where an object is wanted, for a message."""
    if isinstance(given, type):
        return f"found the class {given.__name__}; make one: {given.__name__}()"
    return f"found {given!r}"
