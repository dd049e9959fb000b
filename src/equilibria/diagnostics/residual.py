"""A penalty that teaches a map to converge, at no extra evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.solvers import Solution
from equilibria.solvers.residual import NOTHING, norm
from equilibria.solvers.state import Packing


def residual_penalty(solution: Solution, above: float = 0.0) -> Tensor:
    """The mean over groups of `‖f(z) − z‖ / ‖f(z)‖` at the tracked evaluation of a solution, differentiable.

    Added to a loss it asks the map to contract where the solve ends, and costs no evaluation and no second derivative.

    Args:
        solution: with its tracked evaluation.
        above: what a group's residual has beyond this counts: a map that converges well enough is left in peace.

    Raises:
        ValueError: the solution was computed without gradients, so there is nothing to penalise.
    """
    if solution.tracked is None:
        raise ValueError("residual_penalty needs a solution that was computed with gradients on")
    # One number may be of one sample or, in scope "all", of all: either way it is that of the whole state.
    packing = Packing(solution.value, solution.residual.dim() if solution.residual.numel() != 1 else 0)
    z, f_z = (packing.pack(state) for state in solution.tracked)
    with torch.no_grad():
        scale = norm(f_z).clamp(min=NOTHING)
    return (norm(f_z - z) / scale - above).clamp(min=0).mean()
