"""Broyden's good method (Broyden 1965) with bounded history, per group, in compact form.

For `g(z) = f(z) − z` started from the Jacobian `−I`, the pairs `sᵢ = Δz`, `yᵢ = Δg` of the last steps give the inverse
(Byrd, Nocedal and Schnabel 1994) `−I + (Y + S) K⁻¹ Sᵀ` with `Kᵢⱼ = ⟨sᵢ, yⱼ⟩ + [i > j] ⟨sᵢ, sⱼ⟩`. As `Y + S` are the
differences `ΔF` of the map's values, the quasi-Newton step is `f(z) − ΔF K⁻¹ Sᵀ g(z)`. In this form the oldest pair
can be dropped exactly, and in scope `"prefix"` every inner product runs over a token and its predecessors, so that no
token sees a later one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilibria.solvers.anderson import combine
from equilibria.solvers.base import Point, Solver
from equilibria.solvers.residual import Groups


@dataclass
class _Pairs:
    """The last steps, newest last, the differences of values they caused, and the matrix `K` by rows."""

    steps: list[Tensor] = field(default_factory=list)
    value_differences: list[Tensor] = field(default_factory=list)
    matrix: list[list[Tensor]] = field(default_factory=list)
    z: Tensor | None = None
    value: Tensor | None = None

    def push(self, z: Tensor, value: Tensor, limit: int, groups: Groups) -> None:
        """Take in the latest iterate and value, dropping the oldest pair beyond `limit`."""
        if self.z is not None and self.value is not None:
            if len(self.steps) == limit:
                self.steps.pop(0)
                self.value_differences.pop(0)
                self.matrix = [row[1:] for row in self.matrix[1:]]
            step, difference = z - self.z, value - self.value
            change = difference - step
            for row, other in zip(self.matrix, self.steps, strict=True):
                row.append(groups.dot(other, change))
            # Below the diagonal ⟨s, y⟩ + ⟨s, s⟩ is one product, with the difference of values.
            self.matrix.append(
                [*(groups.dot(step, other) for other in self.value_differences), groups.dot(step, change)]
            )
            self.steps.append(step)
            self.value_differences.append(difference)
        self.z, self.value = z, value


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's good method. Reaches fixed points of maps that do not contract, at a higher cost per evaluation.

    Args:
        history: pairs kept; the oldest is dropped, at least 1.
    """

    history: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history < 1:
            raise ValueError(f"history must be at least 1, found {self.history}")

    def init(self, z: Tensor, groups: Groups) -> _Pairs:
        """No pairs: the first step is plain iteration."""
        return _Pairs()

    def step(self, memory: _Pairs, point: Point, groups: Groups) -> tuple[Tensor, _Pairs]:
        """A full quasi-Newton step with the latest pairs."""
        memory.push(point.z, point.value, self.history, groups)
        if not memory.steps:
            return point.value, memory
        target = torch.stack([groups.dot(step, point.difference) for step in memory.steps], dim=-1)
        matrix = torch.stack([torch.stack(row, dim=-1) for row in memory.matrix], dim=-2)
        gamma = _solve(matrix, target).to(point.value.dtype)
        return combine(point.value, list(gamma.unbind(-1)), memory.value_differences), memory

    def transposed_inverse(self, memory: _Pairs, g: Tensor, groups: Groups) -> Tensor:
        """`g − S K⁻ᵀ ΔFᵀ g`: what the pairs take for the solution of `v = Jᵀ v + g` (SHINE, arXiv:2106.00553).

        It is the exact transposed of the linear map that `step` applies to a residual; in scope `"prefix"`, where a
        token's coefficients come from its predecessors, the transposed collects from its successors.
        """
        if not memory.steps:
            return g.clone()
        target = torch.stack([torch.linalg.vecdot(other, g) for other in memory.value_differences], dim=-1)
        matrix = torch.stack([torch.stack(row, dim=-1) for row in memory.matrix], dim=-2)
        gamma = _solve(matrix, target, transposed=True).to(g.dtype)
        if groups.scope == "prefix":
            gamma = gamma.flip(1).cumsum(dim=1).flip(1)
        return combine(g, list(gamma.unbind(-1)), memory.steps)


def _solve(matrix: Tensor, target: Tensor, transposed: bool = False) -> Tensor:
    """`K⁻¹ target` per group in float64; zero (plain iteration) where `K` is singular to working precision.

    On request `K⁻ᵀ target`.

    Rows are scaled to unit size first. A row of zeros belongs to a step of no length (a frozen group): it is taken out.
    """
    matrix, target = matrix.double(), target.double()
    size = matrix.abs().amax(dim=-1)
    empty = size <= torch.finfo(torch.float32).tiny
    scale = torch.where(empty, 1.0, size).reciprocal()
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    keep = ~(empty.unsqueeze(-1) | empty.unsqueeze(-2))
    matrix = torch.where(keep, matrix * scale.unsqueeze(-1), identity)
    if transposed:
        gamma, information = torch.linalg.solve_ex(matrix.mT, torch.where(empty, 0.0, target))
        gamma = gamma * scale
    else:
        gamma, information = torch.linalg.solve_ex(matrix, torch.where(empty, 0.0, target * scale))
    usable = (information == 0) & torch.isfinite(gamma).all(dim=-1)
    return torch.where(usable.unsqueeze(-1), gamma, 0.0)
