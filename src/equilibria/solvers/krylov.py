"""GMRES with restart for affine maps (Saad and Schultz 1986), all groups at once.

An implicit gradient solves `v = Jᵀ v + g`, which is affine in `v`; for that GMRES has the smallest residual any
method can have after as many evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from equilibria.ranges import one_of, whole
from equilibria.solvers.base import AdjointSolver
from equilibria.solvers.mapped import on_plain_tensors
from equilibria.solvers.point import Map
from equilibria.solvers.residual import NOTHING, Gauge, norm
from equilibria.solvers.solution import Iterate, Status, no_groups_like, worst
from equilibria.solvers.state import Packing, State

# A measured residual contradicts its cycle's estimate beyond this multiple of it and this many roundings of the value.
_TRUSTED, _ROUNDINGS = 2.0, 100.0
# What of a product with a unit vector lies outside the Krylov space is rounding below this.
_BREAKDOWN = 1e-8


@dataclass(frozen=True, kw_only=True)
class GMRES(AdjointSolver):
    """Solve `z = T(z)` for an affine `T`. On a map that is not affine the result is meaningless.

    Each sample is solved by itself, which is right where `T` does not mix them. Where the residual measured after a
    cycle is not what the cycle estimated, samples are coupled, and all are solved as one from there on.

    Args:
        restart: basis vectors kept before a restart; bounds the memory.
        scope: what is solved by itself: a `"sample"`, or `"all"`, the whole state, from the start.
    """

    restart: int = 20
    scope: Literal["sample", "all"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(2, max_evaluations=self.max_evaluations)
        whole(1, restart=self.restart)
        one_of(Literal["sample", "all"], scope=self.scope)

    @on_plain_tensors
    @torch.no_grad()
    def solve(self, f: Map, z0: State) -> Iterate:
        run = _Run(self, f, z0)
        while run.charged + 2 <= self.max_evaluations and bool(run.active.any()):
            run.cycle()
            if run.coupled:
                return self._solve_as_one(f, run)
        return run.iterate()

    def _solve_as_one(self, f: Map, run: _Run) -> Iterate:
        """Continue with one group; its residual is then that of every sample."""
        left = self.max_evaluations - run.charged
        first = run.iterate()
        if left < 2:
            return first
        packing = run.gauge.packing
        whole = replace(self, scope="all", max_evaluations=left).solve(f, packing.unpack(run.z))
        groups = first.residual.shape
        value = replace(packing, units=None).pack(Packing.of(packing.like, "all").unpack(whole.value))
        return replace(
            whole,
            value=value,
            proposal=value,
            residual=whole.residual.expand(groups),
            converged=whole.converged.expand(groups),
            group_evaluations=whole.group_evaluations.expand(groups),
        ).after(first)


class _Run:
    """The state of one solve: the iterate, its value, and what is known of them."""

    def __init__(self, options: GMRES, f: Map, z0: State) -> None:
        self.options, self.f = options, f
        self.gauge = Gauge(Packing.of(z0, options.scope), options.criterion, options.tol)
        z = self.gauge.packing.pack(z0)
        self.z, self.f_z = self.gauge.begin(z, self.apply(z))
        self.residual, *_ = self.gauge.measure(self.f_z, self.f_z - self.z)
        self.trace = [worst(self.residual)]
        self.active = self.residual > options.tol
        self.converged_at = no_groups_like(z) + 1
        # A cycle is charged in full: what is used of it depends on other samples, how far the budget reaches must not.
        self.charged = 1
        self.coupled = False

    def apply(self, z: Tensor) -> Tensor:
        packing = self.gauge.packing
        return packing.pack(self.f(packing.unpack(z)))

    def cycle(self) -> None:
        """One Arnoldi cycle and a measurement of its result."""
        size = min(self.options.restart, self.options.max_evaluations - self.charged - 1)
        self.charged += size + 1
        correction, estimate = self._correction(size)
        candidate = torch.where(self.active.unsqueeze(-1), self.z + correction, self.z)
        f_candidate = self.apply(candidate)
        measured, *_ = self.gauge.measure(f_candidate, f_candidate - candidate)
        self.trace.append(worst(measured))
        if self._contradicts(estimate, f_candidate, candidate, measured):
            self.coupled = True
            if float(norm((f_candidate - candidate).flatten())) < float(norm((self.f_z - self.z).flatten())):
                self.z, self.f_z, self.residual = candidate, f_candidate, measured
            return
        better = self.active & (measured < self.residual)
        self.converged_at = torch.where(self.active, len(self.trace), self.converged_at)
        self.z = torch.where(better.unsqueeze(-1), candidate, self.z)
        self.f_z = torch.where(better.unsqueeze(-1), f_candidate, self.f_z)
        self.residual = torch.where(better, measured, self.residual)
        self.active = better & (self.residual > self.options.tol)

    def iterate(self) -> Iterate:
        value = self.gauge.packing.plain(self.z)
        return Iterate(
            value=value,
            proposal=value,
            residual=self.residual,
            converged=self.residual <= self.options.tol,
            tolerance=self.options.tol,
            evaluations=len(self.trace),
            trace=self.trace,
            group_evaluations=self.converged_at,
            status=self._status(),
        )

    def _correction(self, size: int) -> tuple[Tensor, Tensor]:
        """The correction by a cycle on `I − A`, `A x = T(z + x) − T(z)`, and estimated norms of the residuals left."""
        rhs, f_z, options = self.f_z - self.z, self.f_z, self.options
        # Differences at the scale of the residual keep rounding errors of an affine map small. Where a sample has none,
        # only others can move it, at their scale.
        lengths = norm(rhs)
        largest = torch.nan_to_num(lengths, 0.0, 0.0).amax().clamp(min=torch.finfo(rhs.dtype).tiny)
        scale = torch.where(lengths > 0, lengths, largest).unsqueeze(-1)
        estimates = [lengths]

        def operator(v: Tensor) -> Tensor:
            return v - (self.apply(self.z + v * scale) - f_z) / scale

        sizes = norm(f_z) if options.criterion == "relative" else torch.ones_like(lengths)

        def report(estimate: Tensor) -> None:
            estimates[0] = estimate
            self.trace.append(worst((estimate / sizes.clamp(min=NOTHING)).float()))

        # A little less than the tolerance leaves room for the estimate's own rounding.
        enough = 0.9 * options.tol * sizes
        enough = torch.where(self.active, enough, torch.inf)
        return gmres_cycle(operator, rhs, size, enough, lambda: True, report), estimates[0]

    def _contradicts(self, estimate: Tensor, f_z: Tensor, z: Tensor, measured: Tensor) -> bool:
        """Whether a sample's residual is not what its own Krylov space says: then others contribute to it."""
        if z.shape[0] < 2:
            return False
        slack = _ROUNDINGS * torch.finfo(z.dtype).eps * norm(f_z)
        expected = norm(f_z - z) <= _TRUSTED * estimate + slack
        # Samples that had no finite residual before are another matter.
        judged = (measured > self.options.tol) & torch.isfinite(self.residual)
        return bool((judged & ~expected).any())

    def _status(self) -> Status:
        if bool((self.residual <= self.options.tol).all()):
            return Status.CONVERGED
        if not bool(torch.isfinite(self.residual).all()):
            return Status.NON_FINITE
        # Samples that a whole cycle did not help are no longer active.
        return Status.MAX_EVALUATIONS if bool(self.active.any()) else Status.STALLED


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
        size: most dimensions of the space, each one application of the operator; at least 1.
        enough: the residual norm at which a group is done, `(*groups,)`.
        may_look: whether to synchronise with the device after an application, to see whether all are done.
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
        basis.append(
            torch.where((height > _BREAKDOWN).unsqueeze(-1), w / height.clamp(min=_BREAKDOWN).unsqueeze(-1), 0.0)
        )
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
    floor = torch.finfo(r.dtype).eps * diagonal.abs().amax(dim=-1, keepdim=True).clamp(min=_BREAKDOWN)
    diagonal.copy_(torch.where(diagonal.abs() > floor, diagonal, floor))
    projected = q.mT @ target.unsqueeze(-1)
    y = torch.linalg.solve_triangular(r, projected, upper=True)
    remainder = target.unsqueeze(-1) - hessenberg @ y
    return y.squeeze(-1), torch.linalg.vector_norm(remainder.squeeze(-1), dim=-1)
