"""Anderson acceleration, type II (Anderson 1965; Walker and Ni 2011), per group.

With `r = f(z) − z` and the last differences `ΔR`, `ΔF` of residuals and values, the next iterate is
`f(z) − ΔF γ`, where `γ` minimises `‖r − ΔR γ‖` with a ridge. The normal equations are scaled to unit diagonal, so
that the ridge is relative and old, large differences do not drown the latest; they are factored for all groups at
once by an unrolled Cholesky decomposition, which needs no synchronisation and no batched LAPACK call. The residual
and its differences stand side by side in one tensor, so that all inner products of a step are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers.base import Solver
from equilibria.solvers.picard import check_damping
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups


class _History:
    """The last differences in a ring of `limit` slots; the latest residual stands behind them."""

    def __init__(self, z: Tensor, limit: int) -> None:
        self.limit = limit
        self.residuals = z.new_zeros(*z.shape[:-1], limit + 1, z.shape[-1])
        self.values: list[Tensor] = []
        self.value: Tensor | None = None
        self.steps = 0

    def push(self, point: Point) -> None:
        """Take in the latest point; its difference to the one before replaces the oldest."""
        latest = self.residuals.select(-2, self.limit)
        if self.value is not None:
            slot = self.steps % self.limit
            torch.sub(point.difference, latest, out=self.residuals.select(-2, slot))
            if slot == len(self.values):
                self.values.append(torch.empty_like(self.value))
            torch.sub(point.value, self.value, out=self.values[slot])
            self.steps += 1
        latest.copy_(point.difference)
        self.value = point.value

    @property
    def newest_first(self) -> list[int]:
        """The slots in use."""
        filled = min(self.steps, self.limit)
        return [(self.steps - 1 - age) % self.limit for age in range(filled)]


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration with bounded history.

    With scope `"prefix"` the coefficients of a token come from its own residuals and those of all tokens before it,
    which keeps a causal map's solution causal at any budget and converges like scope `"sample"`.

    Args:
        history: differences kept, at least 1.
        ridge: regularisation relative to the scale of the Gram matrix.
        damping: the share `β` of the accelerated residual that is taken, `0 < β ≤ 1`.
    """

    history: int = 3
    ridge: float = 1e-6
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        if self.history < 1:
            raise ValueError(f"history must be at least 1, found {self.history}")
        if self.ridge < 0:
            raise ValueError(f"ridge must be at least 0, found {self.ridge}")

    def init(self, z: Tensor, groups: Groups) -> _History:
        """An empty history."""
        return _History(z, min(self.history, self.max_evaluations))

    def step(self, memory: _History, point: Point, groups: Groups) -> tuple[Tensor, _History]:
        """The accelerated iterate; plain (damped) iteration while the history is empty."""
        memory.push(point)
        slots = memory.newest_first
        gamma: list[Tensor] = []
        if slots:
            gram = groups.products(memory.residuals, memory.residuals)
            gamma = solve_gram(gram, slots, memory.limit, self.ridge)
        proposal = combine(point.value, gamma, [memory.values[slot] for slot in slots])
        if self.damping < 1.0:
            differences = [memory.residuals.select(-2, slot) for slot in slots]
            proposal.sub_(combine(point.difference, gamma, differences), alpha=1.0 - self.damping)
        return proposal, memory


def combine(start: Tensor, weights: list[Tensor], differences: list[Tensor]) -> Tensor:
    """`start − Σ weightᵢ differenceᵢ` in a new tensor, one weight per group."""
    if not weights:
        return start.clone()
    first, *others = zip(weights, differences, strict=True)
    result = torch.addcmul(start, first[0].unsqueeze(-1), first[1], value=-1.0)
    for weight, difference in others:
        result.addcmul_(weight.unsqueeze(-1), difference, value=-1.0)
    return result


def solve_gram(gram: Tensor, slots: list[int], target: int, ridge: float) -> list[Tensor]:
    """Minimise `‖r − Σ γᵢ dᵢ‖² + ridge · Σ ‖dᵢ‖² γᵢ²` per group by Cholesky on the scaled normal equations.

    A direction that is numerically dependent on those before it in `slots` gets weight zero.

    Args:
        gram: inner products of all rows, `(n, n, *groups)`.
        slots: rows that hold the directions `d`, the preferred first.
        target: the row that holds `r`.

    Returns:
        `γ` in the order of `slots`, each `(*groups,)`.
    """
    limits = torch.finfo(gram.dtype)
    floor = 0.5 * max(ridge, limits.eps)
    scale = [gram[i, i].clamp(min=limits.tiny).rsqrt() for i in slots]
    factor: list[list[Tensor]] = []
    inverse: list[Tensor] = []
    solution: list[Tensor] = []
    for a, i in enumerate(slots):
        row: list[Tensor] = []
        pivot = gram[i, i] * scale[a].square() + ridge
        value = gram[i, target] * scale[a]
        for b, j in enumerate(slots[:a]):
            entry = gram[i, j] * scale[a] * scale[b]
            for c in range(b):
                entry = torch.addcmul(entry, row[c], factor[b][c], value=-1.0)
            row.append(entry * inverse[b])
            pivot = torch.addcmul(pivot, row[b], row[b], value=-1.0)
            value = torch.addcmul(value, row[b], solution[b], value=-1.0)
        factor.append(row)
        inverse.append(torch.where(pivot > floor, pivot.clamp(min=floor).rsqrt(), 0.0))
        solution.append(value * inverse[a])
    for a in reversed(range(len(slots))):
        for b in range(a + 1, len(slots)):
            solution[a] = torch.addcmul(solution[a], factor[b][a], solution[b], value=-1.0)
        solution[a] = solution[a] * inverse[a]
    return [weight * size for weight, size in zip(solution, scale, strict=True)]
