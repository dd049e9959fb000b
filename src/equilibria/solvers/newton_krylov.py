"""Inexact Newton with GMRES on Jacobian-vector products (Dembo, Eisenstat and Steihaug 1982; Knoll and Keyes 2004)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equilibria.ranges import one_of, whole
from equilibria.solvers.base import Solver
from equilibria.solvers.krylov import gmres_cycle
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups, norm
from equilibria.solvers.state import State

Products = Literal["exact", "differences"]
Preconditioner = Callable[[State, State], State]

# Eisenstat and Walker 1996, choice 2: solve as exactly as the progress of the last step merits.
_EARNED, _LEAST = 0.9, 1e-4


@dataclass
class _Memory:
    """What a step knows of those before it: the kind of products the map has, once known, and the last residual."""

    products: Products | None
    residual: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Solver):
    """Newton's method for `f(z) − z = 0`, each step solved by GMRES. Quadratic near a solution; no line search.

    A Jacobian-vector product counts as an evaluation. A step is charged `min(inner, features) + 1` evaluations of the
    budget, used or not, with the features of one group: how many are used depends on the whole batch, and how many
    steps a sample gets must not.

    Args:
        inner: most Jacobian-vector products of a step; never more than a group has features.
        forcing: largest residual of the linear equation relative to that of the map; it tightens as steps succeed.
        products: `"exact"`, by forward-mode differentiation, or `"differences"`, by one more application of the map
            each, for maps without a forward derivative (fused attention, custom autograd functions). None takes exact
            ones where the map has them; with a draft, whose low precision makes differences noise, always.
        preconditioner: `(z, v) → w`, linear in `v`, sample by sample, in the structure of `z0`; approximates
            `(I − J(z))⁻¹ v`.

    Raises:
        ValueError: scope is `"token"` or `"prefix"`. A token's Krylov space is made of products with the whole
            Jacobian; mixed with coefficients that differ between tokens, they are no longer products of anything.
    """

    inner: int = 8
    forcing: float = 0.1
    products: Products | None = None
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("sample", "all"):
            raise ValueError(
                f'NewtonKrylov solves sample by sample: scope must be "sample" or "all", found {self.scope!r}; '
                "take Broyden or Anderson for a causal solve"
            )
        whole(1, inner=self.inner)
        one_of(Products, products=self.products)
        if self.draft is not None and self.products == "differences":
            raise ValueError('differences of low-precision values are noise: drop draft, or take products="exact"')
        if self.draft is not None and self.products is None:
            object.__setattr__(self, "products", "exact")
        if not 0 < self.forcing < 1:
            raise ValueError(f"forcing must be between 0 and 1, found {self.forcing}")

    def init(self, z: Tensor, groups: Groups) -> _Memory:
        return _Memory(self.products)

    def step(self, memory: _Memory, point: Point, groups: Groups) -> tuple[Tensor, _Memory]:
        residual = norm(point.difference)
        # A Krylov space of a group has no more dimensions than the group has features.
        size = point.map.reserve(min(self.inner, point.z.shape[-1]))
        before, memory.residual = memory.residual, residual
        if size == 0:
            return point.value, memory
        forcing = torch.full_like(residual, self.forcing)
        if before is not None:
            progress = residual / before.clamp(min=torch.finfo(before.dtype).tiny)
            forcing = (_EARNED * progress.square()).clamp(min=_LEAST, max=self.forcing)
        correction = gmres_cycle(
            lambda v: self._operator(point, v, memory), point.difference, size, forcing * residual, point.map.may_look
        )
        return point.z + self._precondition(point, correction), memory

    def _operator(self, point: Point, v: Tensor, memory: _Memory) -> Tensor:
        """`(I − J) M v`."""
        v = self._precondition(point, v)
        if memory.products != "differences":
            try:
                product = point.map.derivative(point.z, v)
            except RuntimeError as error:  # NotImplementedError is one
                if memory.products == "exact":
                    raise RuntimeError(
                        f'the map has no forward-mode derivative ({error}); NewtonKrylov(products="differences") '
                        "needs none"
                    ) from error
                memory.products = "differences"
            else:
                memory.products = "exact"
                return v - product
        root = torch.finfo(v.dtype).eps ** 0.5
        size = (root * (1.0 + norm(point.z)) / norm(v).clamp(min=torch.finfo(v.dtype).tiny)).unsqueeze(-1)
        return v - (point.map(point.z + size * v) - point.value) / size

    def _precondition(self, point: Point, v: Tensor) -> Tensor:
        if self.preconditioner is None:
            return v
        return point.map.pack(self.preconditioner(point.map.unpack(point.z), point.map.unpack(v)))
