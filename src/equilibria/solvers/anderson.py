"""Anderson acceleration, type II (Anderson 1965; Walker and Ni 2011), per group.

With `r = f(z) − z` and the last differences `ΔR`, `ΔF` of residuals and values, the next iterate is
`f(z) − ΔF γ`, where `γ` minimises `‖r − ΔR γ‖` with a ridge. The normal equations are scaled to unit diagonal, so
that the ridge is relative and old, large differences do not drown the latest; they are factored for all groups at
once by an unrolled Cholesky decomposition, which needs no synchronisation and no batched LAPACK call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilibria.solvers.base import Point, Solver
from equilibria.solvers.picard import check_damping
from equilibria.solvers.residual import Groups


@dataclass
class _History:
    """The last differences, newest last, and their Gram matrix (lower triangle, a row per difference)."""

    residual_differences: list[Tensor] = field(default_factory=list)
    value_differences: list[Tensor] = field(default_factory=list)
    gram: list[list[Tensor]] = field(default_factory=list)
    residual: Tensor | None = None
    value: Tensor | None = None

    def push(self, residual: Tensor, value: Tensor, limit: int, groups: Groups) -> None:
        """Take in the latest residual and value, dropping the oldest difference beyond `limit`."""
        if self.residual is not None and self.value is not None:
            if len(self.gram) == limit:
                self.residual_differences.pop(0)
                self.value_differences.pop(0)
                self.gram = [row[1:] for row in self.gram[1:]]
            self.residual_differences.append(residual - self.residual)
            self.value_differences.append(value - self.value)
            latest = self.residual_differences[-1]
            self.gram.append([groups.dot(other, latest) for other in self.residual_differences])
        self.residual, self.value = residual, value


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
        return _History()

    def step(self, memory: _History, point: Point, groups: Groups) -> tuple[Tensor, _History]:
        """The accelerated iterate; plain (damped) iteration while the history is empty."""
        memory.push(point.difference, point.value, self.history, groups)
        target = [groups.dot(difference, point.difference) for difference in memory.residual_differences]
        gamma = solve_gram(memory.gram, target, self.ridge)
        proposal = combine(point.value, gamma, memory.value_differences)
        if self.damping < 1.0:
            accelerated = combine(point.difference, gamma, memory.residual_differences)
            proposal = proposal.sub_(accelerated, alpha=1.0 - self.damping)
        return proposal, memory


def combine(start: Tensor, weights: list[Tensor], differences: list[Tensor]) -> Tensor:
    """`start − Σ weightᵢ differenceᵢ` in a new tensor, one weight per group."""
    result = start.clone()
    for weight, difference in zip(weights, differences, strict=True):
        result.addcmul_(weight.unsqueeze(-1), difference, value=-1.0)
    return result


def solve_gram(gram: list[list[Tensor]], target: list[Tensor], ridge: float) -> list[Tensor]:
    """Solve `(G + ridge · diag(G)) γ = target` per group by Cholesky on the scaled matrix.

    Directions that are numerically dependent on newer ones get weight zero.

    Args:
        gram: lower triangle of `G`, oldest difference first; every entry `(*groups,)`.
        target: right-hand side, one `(*groups,)` per difference.
    """
    size = len(gram)
    if size == 0:
        return []
    tiny = torch.finfo(target[0].dtype).tiny
    # Newest first, so that a dependent older difference is the one that is dropped.
    order = range(size - 1, -1, -1)
    scale = [gram[i][i].clamp(min=tiny).rsqrt() for i in order]
    entry = [
        [gram[max(i, j)][min(i, j)] * scale[a] * scale[b] for b, j in enumerate(list(order)[: a + 1])]
        for a, i in enumerate(order)
    ]
    floor = max(ridge, torch.finfo(target[0].dtype).eps)
    factor: list[list[Tensor]] = []
    inverse_pivot: list[Tensor] = []
    solution: list[Tensor] = []
    for a, i in enumerate(order):
        row: list[Tensor] = []
        for b in range(a):
            value = entry[a][b]
            for c in range(b):
                value = value - row[c] * factor[b][c]
            row.append(value * inverse_pivot[b])
        pivot = entry[a][a] + ridge
        value = target[i] * scale[a]
        for b in range(a):
            pivot = pivot - row[b] * row[b]
            value = value - row[b] * solution[b]
        inverse = torch.where(pivot > floor * 0.5, pivot.clamp(min=floor * 0.5).rsqrt(), 0.0)
        factor.append(row)
        inverse_pivot.append(inverse)
        solution.append(value * inverse)
    for a in range(size - 1, -1, -1):
        value = solution[a]
        for b in range(a + 1, size):
            value = value - factor[b][a] * solution[b]
        solution[a] = value * inverse_pivot[a]
    weights = [solution[a] * scale[a] for a in range(size)]
    return weights[::-1]
