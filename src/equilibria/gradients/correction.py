"""Fixed-point correction (Bai et al. 2022, arXiv:2204.08442): a loss on iterates of the solve beside the solution's."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from equilibria.solvers import Solution, State


def fixed_point_correction(solution: Solution, loss: Callable[[State], Tensor], decay: float = 0.8) -> Tensor:
    """The loss of the solution, plus that of every kept iterate, weighted less the earlier it is.

    Of `n` kept iterates the last has weight `decay`, the one before `decay²`, and so on. Which iterates are kept is
    said by `fixed_point(..., iterates=...)`; each carries the same kind of gradient as the solution. A solve that ended
    before all of them were reached gives fewer terms; the solution's own term and gradient are always there.

    Args:
        solution: from a solve with `iterates`.
        loss: from a state to a scalar.
        decay: of the weights, `0 < decay ≤ 1`.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, found {decay}")
    total = loss(solution.value)
    for age, number in enumerate(sorted(solution.iterates, reverse=True), start=1):
        total = total + decay**age * loss(solution.iterates[number])
    return total
