"""GMRES with restart for affine maps (Saad and Schultz 1986), all groups at once.

An implicit gradient solves `v = Jᵀ v + g`, which is affine in `v`; for that GMRES has the smallest residual any
method can have after as many evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from equilibria.solvers.mapped import on_plain_tensors
from equilibria.solvers.point import Map
from equilibria.solvers.residual import EPSILON, Criterion, norm, residual_of
from equilibria.solvers.solution import Iterate, Status, no_groups_like, worst
from equilibria.solvers.state import Packing, State


@dataclass(frozen=True, kw_only=True)
class GMRES:
    """Solve `z = T(z)` for an affine `T`, sample by sample. On a map that is not affine the result is meaningless.

    Args:
        tol: residual at which a sample has converged.
        max_evaluations: applications of the map at most.
        restart: basis vectors kept before a restart; bounds the memory.
        criterion: `"relative"` or `"absolute"`, as for `Solver`.
    """

    tol: float = 1e-3
    max_evaluations: int = 40
    restart: int = 20
    criterion: Criterion = "relative"

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be at least 0, found {self.tol}")
        if self.max_evaluations < 2:
            raise ValueError(f"GMRES needs max_evaluations of at least 2, found {self.max_evaluations}")
        if self.restart < 1:
            raise ValueError(f"restart must be at least 1, found {self.restart}")
        if self.criterion not in get_args(Criterion):
            raise ValueError(f"criterion must be one of {get_args(Criterion)}, found {self.criterion!r}")

    @on_plain_tensors
    @torch.no_grad()
    def solve(self, f: Map, z0: State) -> Iterate:
        """Run restarted GMRES from `z0`; one evaluation per basis vector and one per measurement."""
        packing = Packing.of(z0, "sample")

        def apply(z: Tensor) -> Tensor:
            return packing.pack(f(packing.unpack(z)))

        z = packing.pack(z0)
        f_z = apply(z)
        residual = self._measure(f_z, z)
        trace = [worst(residual)]
        converged_at, active = no_groups_like(z) + 1, residual > self.tol
        # A cycle is charged in full: what is used of it depends on other samples, how far the budget reaches must not.
        charged = 1
        while charged + 2 <= self.max_evaluations and bool(active.any()):
            size = min(self.restart, self.max_evaluations - charged - 1)
            charged += size + 1
            correction = self._cycle(apply, f_z, z, active, size, trace)
            candidate = torch.where(active.unsqueeze(-1), z + correction, z)
            f_candidate = apply(candidate)
            measured = self._measure(f_candidate, candidate)
            trace.append(worst(measured))
            better = active & (measured < residual)
            converged_at = torch.where(active, len(trace), converged_at)
            z = torch.where(better.unsqueeze(-1), candidate, z)
            f_z = torch.where(better.unsqueeze(-1), f_candidate, f_z)
            residual = torch.where(better, measured, residual)
            active = better & (residual > self.tol)
        return Iterate(
            value=z,
            proposal=z,
            residual=residual,
            tolerance=self.tol,
            evaluations=len(trace),
            trace=trace,
            group_evaluations=converged_at,
            status=self._status(residual, active),
        )

    def _cycle(
        self, apply: Callable[[Tensor], Tensor], f_z: Tensor, z: Tensor, active: Tensor, size: int, trace: list[float]
    ) -> Tensor:
        """The correction of one Arnoldi cycle on `I − A` with `A x = T(z + x) − T(z)`, wanted where `active`."""
        rhs = f_z - z
        # Differences at the scale of the residual keep rounding errors of an affine map small.
        scale = norm(rhs).clamp(min=torch.finfo(rhs.dtype).tiny).unsqueeze(-1)

        def operator(v: Tensor) -> Tensor:
            return v - (apply(z + v * scale) - f_z) / scale

        def report(estimate: Tensor) -> None:
            trace.append(worst(residual_of(estimate, norm(f_z), self.criterion)))

        # A little less than the tolerance leaves room for the estimate's own rounding.
        enough = 0.9 * self.tol * (norm(f_z) + EPSILON if self.criterion == "relative" else torch.ones_like(norm(f_z)))
        return gmres_cycle(operator, rhs, size, torch.where(active, enough, torch.inf), lambda: True, report)

    def _measure(self, f_z: Tensor, z: Tensor) -> Tensor:
        return residual_of(norm(f_z - z), norm(f_z), self.criterion)

    def _status(self, residual: Tensor, active: Tensor) -> Status:
        if bool((residual <= self.tol).all()):
            return Status.CONVERGED
        if not bool(torch.isfinite(residual).all()):
            return Status.NON_FINITE
        # Samples that a whole cycle did not help are no longer active.
        return Status.MAX_EVALUATIONS if bool(active.any()) else Status.STALLED


def gmres_cycle(
    operator: Callable[[Tensor], Tensor],
    rhs: Tensor,
    size: int,
    enough: Tensor,
    may_look: Callable[[], bool],
    report: Callable[[Tensor], None] = lambda estimate: None,
) -> Tensor:
    """Minimise `‖rhs − operator(x)‖` per group over a Krylov space.

    A group's result is that of the step at which it had enough, whatever the other groups needed after it.

    Args:
        operator: a linear map on `(*groups, features)` that couples no groups.
        rhs: `(*groups, features)`.
        size: dimensions of the space at most, each one application of the operator; at least 1.
        enough: the residual norm at which a group is done, `(*groups,)`.
        may_look: whether to synchronise with the device after the latest application, to see if all are done.
        report: called with the estimated residual norms after each application.
    """
    length = norm(rhs)
    basis = [rhs / length.clamp(min=torch.finfo(length.dtype).tiny).unsqueeze(-1)]
    hessenberg = rhs.new_zeros(*length.shape, size + 1, size)
    weights = rhs.new_zeros(*length.shape, size)
    estimate = length
    for k in range(size):
        w = operator(basis[k])
        for _ in range(2):  # a second pass of Gram-Schmidt restores orthogonality in float32
            for j, direction in enumerate(basis):
                overlap = torch.linalg.vecdot(direction, w)
                hessenberg[..., j, k] += overlap
                w = w - overlap.unsqueeze(-1) * direction
        height = norm(w)
        hessenberg[..., k + 1, k] = height
        solution, remainder = _least_squares(hessenberg[..., : k + 2, : k + 1], length)
        # Where an operator is singular, weights without bound may buy no decrease: they are not taken.
        active = (estimate > enough) & (remainder < estimate)
        weights[..., : k + 1] = torch.where(active.unsqueeze(-1), solution, weights[..., : k + 1])
        estimate = torch.where(active, remainder, estimate)
        report(estimate)
        basis.append(torch.where((height > EPSILON).unsqueeze(-1), w / height.clamp(min=EPSILON).unsqueeze(-1), 0.0))
        if may_look() and bool((estimate <= enough).all()):
            break
    correction = torch.zeros_like(rhs)
    for weight, direction in zip(weights.unbind(-1), basis, strict=False):
        correction.addcmul_(weight.unsqueeze(-1), direction)
    return torch.nan_to_num(correction)


def _least_squares(hessenberg: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise `‖norm · e₁ − H y‖` per sample: `y` and the minimum."""
    target = torch.zeros_like(hessenberg[..., 0])
    target[..., 0] = norm
    q, r = torch.linalg.qr(hessenberg)
    # A breakdown (an exact solution) leaves a zero pivot; the ridge at rounding level keeps it solvable.
    diagonal = torch.diagonal(r, dim1=-2, dim2=-1)
    floor = torch.finfo(r.dtype).eps * diagonal.abs().amax(dim=-1, keepdim=True).clamp(min=EPSILON)
    diagonal.copy_(torch.where(diagonal.abs() > floor, diagonal, floor))
    projected = q.mT @ target.unsqueeze(-1)
    y = torch.linalg.solve_triangular(r, projected, upper=True)
    remainder = target.unsqueeze(-1) - hessenberg @ y
    return y.squeeze(-1), torch.linalg.vector_norm(remainder.squeeze(-1), dim=-1)
