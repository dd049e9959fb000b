"""Norms, residuals and inner products per group, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from equilibria.solvers.state import Scope

# Keeps a residual defined at the origin; far below any norm of interest.
EPSILON = 1e-8


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1)


def relative_residual(f_z: Tensor, z: Tensor) -> Tensor:
    """`‖f(z) − z‖ / (‖f(z)‖ + ε)` over the last dimension, float32, infinite where it is not a number."""
    return relative(norm(f_z - z), norm(f_z))


def relative(difference_norm: Tensor, value_norm: Tensor) -> Tensor:
    """The residual from the norms of `f(z) − z` and `f(z)`."""
    residual = (difference_norm / (value_norm + EPSILON)).float()
    return torch.nan_to_num(residual, nan=torch.inf, posinf=torch.inf)


class Groups:
    """The inner product of a scope: over features, accumulated along the second dimension for `"prefix"`.

    One belongs to one solve; it keeps a scratch tensor, since allocating products costs more than computing them.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self._scratch: Tensor | None = None

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """`⟨a, b⟩` per group: `(*groups, features) × (*groups, features) → (*groups,)`. Not differentiable."""
        if self._scratch is None:
            self._scratch = torch.empty_like(a)
        product = torch.mul(a, b, out=self._scratch).sum(dim=-1)
        return product.cumsum(dim=1) if self.scope == "prefix" else product

    def gram(self, rows: Tensor) -> Tensor:
        """All inner products of the rows of each group: `(*groups, n, features) → (*groups, n, n)`."""
        products = rows @ rows.mT
        return products.cumsum(dim=1) if self.scope == "prefix" else products

    @property
    def coupled(self) -> bool:
        """Whether a group's map depends on other groups (tokens of one sample), not only on itself."""
        return self.scope != "sample"
