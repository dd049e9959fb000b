"""`fixed_point` inside `torch.func.vmap`: the mapped dimensions are more of the batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils import _pytree

from equilibria.gradients import Gradient, Implicit, forward_mode
from equilibria.solvers import Map, Solution, State, mapped


def solve_in_transforms(solve: Callable[[Map, State], Solution], f: Map, z0: State, gradient: Gradient) -> Solution:
    """`solve(f, z0)` inside transforms of `torch.func`, on flat states where `vmap` is the innermost of them.

    Raises:
        NotImplementedError: the gradient cannot be right there; the message names one that can.
    """
    _check(gradient)
    levels = mapped.mapped_last()
    if not levels:
        return solve(f, z0)
    mapping = mapped.Mapping.of(f, z0, levels[0], levels[-1])
    solution = solve(mapping.flat_map(f), mapping.flat_state(z0))
    solution.evaluations += 1
    trace, solution.group_trace = solution.group_trace, None
    solution = _pytree.tree_map_only(Tensor, mapping.mapped, solution)
    if trace is not None:
        solution.group_trace = mapping.mapped(trace.movedim(0, -1)).movedim(-1, 0)
    return solution


def _check(gradient: Gradient) -> None:
    if forward_mode.active() and mapped.differentiated() is not None:
        raise NotImplementedError(
            "forward and reverse mode cannot be nested around a fixed point; for second derivatives take "
            "torch.autograd.grad with create_graph=True and gradient=Implicit(higher_order=True)"
        )
    if not gradient.in_transforms:
        name = type(gradient).__name__
        raise NotImplementedError(f"{name} does not go with torch.func transforms; take Implicit()")
    if isinstance(gradient, Implicit) and gradient.higher_order and mapped.differentiated() is not None:
        raise NotImplementedError(
            "Implicit(higher_order=True) does not go with torch.func transforms; take "
            "torch.autograd.grad with create_graph=True, or Implicit()"
        )
