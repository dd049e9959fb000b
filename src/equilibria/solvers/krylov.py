"""GMRES with restart for affine maps (Saad and Schultz 1986), all groups at once.

An implicit gradient solves `v = Jᵀ v + g`, which is affine in `v`; for that GMRES has the smallest residual any
method can have after as many evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers.point import Map
from equilibria.solvers.residual import EPSILON, relative_residual
from equilibria.solvers.solution import Iterate, Status, no_groups_like, worst
from equilibria.solvers.state import Packing, State


@dataclass(frozen=True, kw_only=True)
class GMRES:
    """Solve `z = T(z)` for an affine `T`, sample by sample. On a map that is not affine the result is meaningless.

    Args:
        tol: relative residual at which a sample has converged.
        max_evaluations: applications of the map at most.
        restart: basis vectors kept before a restart; bounds the memory.
    """

    tol: float = 1e-3
    max_evaluations: int = 40
    restart: int = 20

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be at least 0, found {self.tol}")
        if self.max_evaluations < 2:
            raise ValueError(f"GMRES needs max_evaluations of at least 2, found {self.max_evaluations}")
        if self.restart < 1:
            raise ValueError(f"restart must be at least 1, found {self.restart}")

    @torch.no_grad()
    def solve(self, f: Map, z0: State) -> Iterate:
        """Run restarted GMRES from `z0`; one evaluation per basis vector and one per measurement."""
        packing = Packing.of(z0, "sample")

        def apply(z: Tensor) -> Tensor:
            return packing.pack(f(packing.unpack(z)))

        z = packing.pack(z0)
        f_z = apply(z)
        residual = relative_residual(f_z, z)
        trace = [worst(residual)]
        converged_at = no_groups_like(z) + 1
        while len(trace) + 2 <= self.max_evaluations and trace[-1] > self.tol:
            active = residual > self.tol
            correction, used = self._cycle(apply, f_z, z, self.max_evaluations - len(trace) - 1, trace)
            candidate = torch.where(active.unsqueeze(-1), z + correction, z)
            f_candidate = apply(candidate)
            measured = relative_residual(f_candidate, candidate)
            trace.append(worst(measured))
            better = active & (measured < residual)
            converged_at = torch.where(active, len(trace), converged_at)
            z = torch.where(better.unsqueeze(-1), candidate, z)
            f_z = torch.where(better.unsqueeze(-1), f_candidate, f_z)
            residual = torch.where(better, measured, residual)
            if used == 0 or not bool(better.any()):
                break
        return Iterate(
            value=z,
            proposal=z,
            residual=residual,
            tolerance=self.tol,
            evaluations=len(trace),
            trace=trace,
            group_evaluations=converged_at,
            status=self._status(residual, len(trace)),
        )

    def _cycle(
        self, apply: Callable[[Tensor], Tensor], f_z: Tensor, z: Tensor, budget: int, trace: list[float]
    ) -> tuple[Tensor, int]:
        """One Arnoldi cycle on `I − A` with `A x = T(z + x) − T(z)`; returns the correction and the vectors used."""
        rhs = f_z - z
        norm = torch.linalg.vector_norm(rhs, dim=-1)
        safe = norm.clamp(min=torch.finfo(norm.dtype).tiny)
        basis = [rhs / safe.unsqueeze(-1)]
        size = min(self.restart, budget)
        hessenberg = z.new_zeros(*norm.shape, size + 1, size)
        weights = z.new_zeros(*norm.shape, size)
        used = 0
        for k in range(size):
            # Differences at the scale of the residual keep rounding errors of an affine map small.
            w = basis[k] - (apply(z + basis[k] * safe.unsqueeze(-1)) - f_z) / safe.unsqueeze(-1)
            for _ in range(2):  # a second pass of Gram-Schmidt restores orthogonality in float32
                for j, direction in enumerate(basis):
                    overlap = torch.linalg.vecdot(direction, w)
                    hessenberg[..., j, k] += overlap
                    w = w - overlap.unsqueeze(-1) * direction
            length = torch.linalg.vector_norm(w, dim=-1)
            hessenberg[..., k + 1, k] = length
            used = k + 1
            weights, estimate = _least_squares(hessenberg[..., : used + 1, :used], norm)
            relative = torch.nan_to_num(estimate / (torch.linalg.vector_norm(f_z, dim=-1) + EPSILON), nan=0.0)
            trace.append(worst(relative.float()))
            basis.append(
                torch.where((length > EPSILON).unsqueeze(-1), w / length.clamp(min=EPSILON).unsqueeze(-1), 0.0)
            )
            # Half the tolerance leaves room for the estimate's own rounding.
            if trace[-1] <= 0.5 * self.tol:
                break
        correction = torch.zeros_like(z)
        for weight, direction in zip(weights.unbind(-1), basis[:used], strict=True):
            correction = torch.addcmul(correction, weight.unsqueeze(-1), direction)
        return torch.nan_to_num(correction), used

    def _status(self, residual: Tensor, evaluations: int) -> Status:
        if bool((residual <= self.tol).all()):
            return Status.CONVERGED
        if not bool(torch.isfinite(residual).all()):
            return Status.NON_FINITE
        return Status.MAX_EVALUATIONS if evaluations + 2 > self.max_evaluations else Status.STALLED


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
