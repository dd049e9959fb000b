"""What happens when a solve did not converge, and where its warning points."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from equilibria.deq.held_map import HeldMap
from equilibria.gradients import forward_mode
from equilibria.solvers import ConvergenceError, ConvergenceWarning, Solution, Status, mapped

OnFailure = Literal["raise", "warn", "ignore"]

_UNSTEADY = (
    "; the map gives different values for the same state: dropout? Draw its random numbers from PyTorch's default "
    "generators, which are held still during a solve, draw them before it, or switch to evaluation mode"
)
# Files of the call machinery, which a warning points past to the user's line.
_MACHINERY = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


def react(on_failure: OnFailure, solution: Solution, held: HeldMap | None) -> None:
    """Raise or warn where a solve did not converge; the same will be done for the adjoint, and is for a tangent."""
    reaction = _ADJOINT_FAILURES[on_failure]
    solution.adjoint.on_failure = reaction
    if reaction is None:
        return
    if solution.status is not Status.CONVERGED:
        message = solution.explain() + _unsteadiness(held, solution)
        if on_failure == "raise":
            raise ConvergenceError(message, solution)
        warn(message)
    if solution.adjoint.failure is not None:
        reaction(solution.adjoint.failure)


def warn(message: str) -> None:
    """A `ConvergenceWarning` at the user's line."""
    warnings.warn(message, ConvergenceWarning, stacklevel=_users_level())


def _raise(message: str) -> None:
    raise ConvergenceError(message)


_ADJOINT_FAILURES: dict[OnFailure, Callable[[str], None] | None] = {"raise": _raise, "warn": warn, "ignore": None}


def _unsteadiness(held: HeldMap | None, solution: Solution) -> str:
    """The sentence about a map that does not stand still, where that may be why a solve failed."""
    if held is None or solution.status is Status.NON_FINITE or forward_mode.active() or mapped.active():
        return ""
    return "" if held.steady(solution.value, solution.tolerance / 10) else _UNSTEADY


def _users_level() -> int:
    """The stack level, as seen by the caller, of the nearest line outside this package and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_MACHINERY):
        level, frame = level + 1, frame.f_back
    return level
