"""The solve of one token as part of a graph that is compiled: the loop is `torch.while_loop`, and waits for nobody.

Its arithmetic is that of the solve loop. What it cannot tell apart, failures and values that need other units, it
leaves to the loop that can.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop
from torch.utils import _pytree

from equilibria.solvers.base import Solver
from equilibria.solvers.point import CountedMap, Map, Point
from equilibria.solvers.residual import COMFORTABLE, Gauge, Groups, norm
from equilibria.solvers.state import Packing

MOST = 128
"""Evaluations of a traced solve, at most: its trace has so many places."""


class Traced(NamedTuple):
    """How a traced solve ended.

    Attributes:
        value: the last iterate, `(1, 1, features)`.
        evaluations: that were made, `()`.
        trace_M: the residual after each, and nothing after them.
        sound: whether the solve converged, and says all that the solve loop would, `()`.
    """

    value: Tensor
    evaluations: Tensor
    trace_M: Tensor
    sound: Tensor


def is_traceable(solver: Solver) -> bool:
    """Whether each step of a solver needs a point and a fixed number of tensors: those of Picard, and of Anderson with
    one difference."""
    alone = solver.short and solver.draft is None and solver.fallback is None
    return alone and solver.scope in ("token", "prefix") and solver.init(torch.empty(1, 1, 1), Groups("token")) is None


def solve_traced(solver: Solver, f: Map, z0: Tensor, tol: Tensor, limit: Tensor) -> Traced:
    """Solve `z = f(z)` of one token, `(1, 1, features)`, within `tol` and `limit` evaluations, both `()`, which may be
    others than the solver's. To be traced: `f` must neither write to tensors nor keep them."""
    groups, packing = Groups(solver.scope), Packing.of(z0, "token")
    uncounted = CountedMap(f, packing, 0, 1)
    gauge = Gauge(packing, solver.criterion, tol)
    places = torch.arange(MOST)

    def measured(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value = f(z)
        difference = value - z
        return value, difference, norm(value), norm(difference)

    def ratio(size: Tensor, moved: Tensor) -> Tensor:
        return gauge.ratio(size, moved).float().reshape(())

    def unfinished(count: Tensor, residual: Tensor, *_: Tensor) -> Tensor:
        return (count < limit) & (count < MOST) & (residual > tol) & (residual < torch.inf)

    value, difference, size, moved = measured(z0)
    scale = torch.maximum(norm(z0), size)
    gauge.set_scale(scale, z0.dtype)
    proposal, memory = solver.step(None, Point(z0, value, difference, None, uncounted), groups)
    kept, outline = _pytree.tree_flatten(memory)
    tensors = [number for number, part in enumerate(kept) if isinstance(part, Tensor)]

    def evaluated(count: Tensor, residual: Tensor, z: Tensor, proposal: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        size, moved, peak, trace_M, *filled = others
        value, difference, size, moved = measured(proposal)
        residual = ratio(size, moved)
        parts: list[Tensor | None] = [None] * len(kept)
        for number, part in zip(tensors, filled, strict=True):
            parts[number] = part
        point = Point(proposal, value, difference, None, uncounted)
        following, memory = solver.step(_pytree.tree_unflatten(parts, outline), point, groups)
        after = _pytree.tree_leaves(memory)
        trace_M = torch.where(places == count, residual, trace_M)
        peak = torch.maximum(peak, moved)
        latest = (count + 1, residual, proposal.clone(), following.clone(), size, moved.clone(), peak, trace_M)
        return (*latest, *(after[number].clone() for number in tensors))

    residual = ratio(size, moved)
    trace_M = torch.where(places == 0, residual, torch.inf)
    begun = (torch.ones((), dtype=torch.int64), residual, z0.clone(), proposal.clone(), size, moved, moved.clone())
    ended = while_loop(unfinished, evaluated, (*begun, trace_M, *(kept[number].clone() for number in tensors)))
    count, residual, z, _, size, moved, gauge.peak, trace_M, *_ = ended
    low, high = COMFORTABLE
    sound = (residual <= tol) & ~gauge.grown(size, moved) & (scale >= low) & (scale <= high)
    return Traced(z, count, trace_M, sound.reshape(()))
