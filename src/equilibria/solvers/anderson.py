"""Anderson acceleration, type II (Anderson 1965; Walker and Ni 2011), per group.

With `r = f(z) − z` and the last differences `ΔR`, `ΔF` of residuals and values, the next iterate is
`f(z) − ΔF γ`, where `γ` minimises `‖r − ΔR γ‖` with a ridge that is relative to the size of each difference. The
residual and its differences stand side by side in one tensor, so that all inner products of a step are one matrix
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equilibria.devices import widest
from equilibria.ranges import at_least, share, whole
from equilibria.solvers.base import Solver
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups

_ROUNDING = torch.finfo(torch.float32).eps
# Keeps the equations of a frozen group solvable, by zero; in float64 below every inner product of float32 vectors.
_TINY = {torch.float64: 1e-60, torch.float32: torch.finfo(torch.float32).tiny}


class _History:
    """The last differences in a ring of `limit` slots; the latest residual stands behind them."""

    def __init__(self, z: Tensor, limit: int) -> None:
        self.limit = limit
        self.residuals = z.new_empty(*z.shape[:-1], limit + 1, z.shape[-1])
        self.values: list[Tensor] = []
        self.value: Tensor | None = None
        self.finite: Tensor | None = None
        self.steps = 0

    def push(self, point: Point) -> int:
        """Adds the latest difference in place of the oldest; returns how many there are."""
        latest = self.residuals.select(-2, self.limit)
        if self.value is not None:
            slot = self.steps % self.limit
            torch.sub(point.difference, latest, out=self.residuals.select(-2, slot))
            if slot == len(self.values):
                self.values.append(torch.empty_like(self.value))
            torch.sub(point.value, self.value, out=self.values[slot])
            broken = point.broken_pair(self.finite)
            if broken is not None:
                self.residuals.select(-2, slot).masked_fill_(broken, 0.0)
                self.values[slot].masked_fill_(broken, 0.0)
            self.steps += 1
        latest.copy_(point.difference)
        self.value, self.finite = point.value, point.finite
        return len(self.values)


class _Before(NamedTuple):
    """The last point, where one difference is kept."""

    value: Tensor
    difference: Tensor
    finite: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration with bounded history.

    With scope `"prefix"` the coefficients of a token come from its own residuals and those of all tokens before it,
    which keeps a causal map's solution causal at any budget and converges like scope `"sample"`.

    Args:
        history: differences kept, at least 1. With one, the method is the secant method of each group, whose steps are
            the cheapest; where few directions converge slowly, more are seldom worth their time.
        ridge: regularisation relative to the scale of the Gram matrix.
        damping: the share `β` of the accelerated residual that is taken, `0 < β ≤ 1`.
    """

    short = True

    history: int = 3
    ridge: float = 1e-6
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(damping=self.damping)
        whole(1, history=self.history)
        at_least(0, ridge=self.ridge)

    def init(self, z: Tensor, groups: Groups) -> _History | None:
        limit = min(self.history, self.max_evaluations)
        return None if limit == 1 else _History(z, limit)

    def step(
        self, memory: _History | _Before | None, point: Point, groups: Groups
    ) -> tuple[Tensor, _History | _Before]:
        if not isinstance(memory, _History):
            return self._secant(memory, point, groups), _Before(point.value, point.difference.clone(), point.finite)
        filled = memory.push(point)
        gamma: Sequence[Tensor] = ()
        if filled:
            gram = groups.products(memory.residuals, memory.residuals).to(widest(point.value.device))
            weights = solve_gram(gram[..., :filled, :filled], gram[..., :filled, memory.limit], self.ridge)
            gamma = weights.to(point.value.dtype).unbind(-1)
        proposal = combine(point.value, gamma, memory.values)
        if self.damping < 1.0:
            differences = memory.residuals[..., :filled, :].unbind(-2)
            proposal.sub_(combine(point.difference, gamma, differences), alpha=1.0 - self.damping)
        return proposal, memory

    def _secant(self, before: _Before | None, point: Point, groups: Groups) -> Tensor:
        """The step with one difference, whose `γ` is a quotient: without matrices, it takes half the time."""
        if before is None:
            return torch.lerp(point.z, point.value, self.damping) if self.damping < 1.0 else point.value.clone()
        change, moved = point.difference - before.difference, point.value - before.value
        broken = point.broken_pair(before.finite)
        if broken is not None:
            change, moved = change.masked_fill(broken, 0.0), moved.masked_fill(broken, 0.0)
        size, target = groups.dot(change, change), groups.dot(change, point.difference)
        gamma = (target / size.clamp(min=torch.finfo(size.dtype).tiny)).unsqueeze(-1)
        factor = -1.0 / (1.0 + max(self.ridge, _ROUNDING))
        proposal = torch.addcmul(point.value, gamma, moved, value=factor)
        if self.damping < 1.0:
            proposal.sub_(torch.addcmul(point.difference, gamma, change, value=factor), alpha=1.0 - self.damping)
        return proposal


def combine(start: Tensor, weights: Sequence[Tensor], differences: Sequence[Tensor]) -> Tensor:
    """`start − Σ weightᵢ differenceᵢ` in a new tensor, one weight per group."""
    if not weights:
        return start.clone()
    first, *others = zip(weights, differences, strict=True)
    result = torch.addcmul(start, first[0].unsqueeze(-1), first[1], value=-1.0)
    for weight, difference in others:
        result.addcmul_(weight.unsqueeze(-1), difference, value=-1.0)
    return result


def solve_gram(gram: Tensor, target: Tensor, ridge: float) -> Tensor:
    """The `γ`, `(*groups, n)`, that minimises `‖r − Σ γᵢ dᵢ‖² + ridge · Σ ‖dᵢ‖² γᵢ²` per group; 0 for a `dᵢ` of 0.

    Args:
        gram: inner products `⟨dᵢ, dⱼ⟩`, `(*groups, n, n)`, in the widest floats, so that rounding of float32 does not
            grow; it is changed.
        target: inner products `⟨dᵢ, r⟩`, `(*groups, n)`, likewise.
        ridge: at least the rounding of float32 products is used.
    """
    gram.diagonal(dim1=-2, dim2=-1).mul_(1.0 + max(ridge, _ROUNDING)).add_(_TINY[gram.dtype])
    return torch.linalg.solve_ex(gram, target)[0]
