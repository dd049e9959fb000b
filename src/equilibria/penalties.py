"""Penalties that teach a map to converge: on the residual where a solve ended, and on the size of the Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.gradients.adjoint import evaluate
from equilibria.ranges import at_least
from equilibria.solvers import Map, Solution, State
from equilibria.solvers.residual import NOTHING, norm
from equilibria.solvers.state import Packing

__all__ = ["jacobian_penalty", "residual_penalty"]


def residual_penalty(solution: Solution, above: float = 0.0) -> Tensor:
    """The mean over groups of `‖f(z) − z‖ / ‖f(z)‖` at the tracked evaluation of a solution, differentiable.

    Added to a loss it makes the map contract where the solve ends, and costs no evaluation and no second derivative.

    Args:
        solution: with its tracked evaluation.
        above: only what exceeds this counts, so that a map that converges well enough is not penalised.

    Raises:
        ValueError: the solution was computed without gradients.
    """
    if solution.tracked is None:
        raise ValueError("residual_penalty needs a solution that was computed with gradients on")
    # One number may be of one sample or, in scope "all", of all: either way it is that of the whole state.
    packing = Packing(solution.value, solution.residual.dim() if solution.residual.numel() != 1 else 0)
    z, f_z = (packing.pack(state) for state in solution.tracked)
    with torch.no_grad():
        scale = norm(f_z).clamp(min=NOTHING)
    return (norm(f_z - z) / scale - above).clamp(min=0).mean()


def jacobian_penalty(f: Map, z: State, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Estimate `‖J‖²_F / n` at `z`, differentiable with respect to everything `f` closes over.

    Hutchinson's estimator with Gaussian probes, as a regulariser: Bai, Koltun and Kolter 2021, arXiv:2106.14342.
    `n` is the number of elements of the state. The precision is the state's, and float32 at least.

    Args:
        f: the map; it must be twice differentiable (fused attention is not: use the math backend).
        z: the state; it is detached.
        probes: vectors averaged over, at least 1.
        generator: of the probes.
    """
    at_least(1, probes=probes)
    evaluation, _ = evaluate(f, z)
    total = torch.zeros((), device=evaluation.inputs[0].device)
    with torch.enable_grad():
        for _ in range(probes):
            probe = tuple(
                torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device=leaf.device)
                for leaf in evaluation.outputs
            )
            # Squares of half precision would overflow.
            product = [
                part.to(torch.promote_types(part.dtype, torch.float32))
                for part in evaluation.transposed(probe, create_graph=True)
            ]
            total = total + sum(part.square().sum() for part in product)
    return total / (probes * sum(leaf.numel() for leaf in evaluation.inputs))
