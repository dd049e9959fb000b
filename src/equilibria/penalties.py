"""Losses beside the task's: on iterates of a solve, on the residual where it ended, on the size of the Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor

from equilibria.gradients.adjoint import evaluate
from equilibria.ranges import share, whole
from equilibria.solvers import Map, Solution, State
from equilibria.solvers.residual import NOTHING, norm
from equilibria.solvers.state import Packing, as_real

__all__ = ["fixed_point_correction", "jacobian_penalty", "residual_penalty"]


def fixed_point_correction(solution: Solution, loss: Callable[[State], Tensor], decay: float = 0.8) -> Tensor:
    """The loss of the solution, plus that of every kept iterate, weighted less the earlier it is (Bai et al. 2022,
    arXiv:2204.08442).

    The last kept iterate has weight `decay`, the one before `decay²`, and so on. `fixed_point(..., iterates=...)` says
    which are kept; each carries the same kind of gradient as the solution. A solve that ended before reaching all of
    them gives fewer terms.

    Args:
        solution: from a solve with `iterates`.
        loss: from a state to a scalar.
        decay: of the weights, `0 < decay ≤ 1`.
    """
    share(decay=decay)
    total = loss(solution.value)
    for age, number in enumerate(sorted(solution.iterates, reverse=True), start=1):
        total = total + decay**age * loss(solution.iterates[number])
    return total


def residual_penalty(solution: Solution, above: float = 0.0) -> Tensor:
    """The mean over groups of `‖f(z) − z‖ / ‖f(z)‖` at the tracked evaluation of a solution, 0 for no groups. It is
    differentiable, with the denominator held constant.

    Added to a loss it asks the map to contract where the solve ends, and costs no evaluation and no second derivative.
    Only what a group's residual has `above` a bound counts, so that a map that converges well enough is left alone.
    Raises ValueError for a solution that was computed without gradients.
    """
    if solution.tracked is None:
        raise ValueError("residual_penalty needs a solution that was computed with gradients on")
    # A single number, of one sample or in scope "all", is that of the whole state.
    packing = Packing(solution.value, solution.residual.dim() if solution.residual.numel() != 1 else 0)
    z, f_z = (packing.pack(state) for state in solution.tracked)
    with torch.no_grad():
        scale = norm(f_z).clamp(min=NOTHING)
    beyond = (norm(f_z - z) / scale - above).clamp(min=0)
    return beyond.sum() / max(1, beyond.numel())


def jacobian_penalty(f: Map, z: State, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Estimate `‖J‖²_F / n` at `z`, differentiable with respect to everything `f` closes over.

    Hutchinson's estimator with Gaussian probes, as a regulariser: Bai, Koltun and Kolter 2021, arXiv:2106.14342.
    `n` is the number of elements of the state, so the penalty is a mean gain per element. It is computed in the state's
    precision, at least float32.

    Args:
        f: the map; it must be twice differentiable (fused attention is not: use the math backend).
        z: the state; it is detached.
        probes: vectors averaged over, at least 1.
        generator: of the probes; PyTorch's default when None.
    """
    whole(1, probes=probes)
    evaluation, _ = evaluate(f, z)
    total = torch.zeros((), device=evaluation.inputs[0].device)
    with torch.enable_grad():
        for _ in range(probes):
            probe = tuple(
                torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device=leaf.device)
                for leaf in evaluation.outputs
            )
            product = evaluation.transposed(probe, create_graph=True)
            # Squares of half precision overflow.
            wide = (as_real(part.to(torch.promote_types(part.dtype, torch.float32))) for part in product)
            total = total + sum(part.square().sum() for part in wide)
    return total / (probes * sum(leaf.numel() for leaf in evaluation.inputs))
