"""`fixed_point` inside `torch.func.vmap`: the mapped dimensions are more of the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from equilibria.gradients import Implicit, ReuseInverse, Reversible, forward_mode
from equilibria.solvers import Solution, mapped

_CHECKED = (Implicit, ReuseInverse, Reversible)


def transformable(solve: Callable[..., Solution]) -> Callable[..., Solution]:
    """`fixed_point(f, z0, ...)`, which `torch.func` may transform where that can be right, else a sentence says so."""

    @functools.wraps(solve)
    def transformed(f: Callable[[Any], Any], z0: Any, *args: Any, **options: Any) -> Solution:
        if not mapped.active():
            return solve(f, z0, *args, **options)
        gradients = [part for part in (*args, *options.values()) if isinstance(part, _CHECKED)]
        _check(gradients)
        levels = mapped.mapped_last()
        if not levels:
            return solve(f, z0, *args, **options)
        mapping = mapped.Mapping.of(f, z0, levels[0], levels[-1])
        solution = solve(mapping.flat_map(f), mapping.flat_state(z0), *args, **options)
        solution.evaluations += 1
        trace, solution.group_trace = solution.group_trace, None
        solution = _pytree.tree_map_only(Tensor, mapping.mapped, solution)
        if trace is not None:
            solution.group_trace = mapping.mapped(trace.movedim(0, -1)).movedim(-1, 0)
        return solution

    return transformed


def _check(gradients: list[Implicit | ReuseInverse | Reversible]) -> None:
    """Raises NotImplementedError for what cannot be right inside a transform."""
    if forward_mode.active() and mapped.differentiated() is not None:
        raise NotImplementedError(
            "forward and reverse mode cannot be nested around a fixed point; for second derivatives take "
            "torch.autograd.grad with create_graph=True and gradient=Implicit(higher_order=True)"
        )
    for gradient in gradients:
        if not isinstance(gradient, Implicit):
            name = type(gradient).__name__
            raise NotImplementedError(f"{name} does not go with torch.func transforms; take Implicit()")
        if gradient.higher_order and mapped.differentiated() is not None:
            raise NotImplementedError(
                "Implicit(higher_order=True) does not go with torch.func transforms; take "
                "torch.autograd.grad with create_graph=True, or Implicit()"
            )
