"""Norms, residuals and inner products per group, in float32 at least."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from equilibria.solvers.state import Scope

# Keeps a residual defined at the origin; far below any norm of interest.
EPSILON = 1e-8

Criterion = Literal["relative", "absolute"]


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1)


def relative_residual(f_z: Tensor, z: Tensor) -> Tensor:
    """`‖f(z) − z‖ / (‖f(z)‖ + ε)` over the last dimension, float32, infinite where it is not a number."""
    return residual_of(norm(f_z - z), norm(f_z), "relative")


def residual_of(difference_norm: Tensor, value_norm: Tensor, criterion: Criterion) -> Tensor:
    """The residual from the norms of `f(z) − z` and `f(z)`: float32, infinite where it is not a number."""
    if criterion == "relative":
        difference_norm = difference_norm / (value_norm + EPSILON)
    return torch.nan_to_num(difference_norm.float(), nan=torch.inf, posinf=torch.inf)


class Groups:
    """The inner product of a scope: over features, accumulated along the second dimension for `"prefix"`."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """`⟨a, b⟩` per group: `(*groups, features) × (*groups, features) → (*groups,)`."""
        product = torch.linalg.vecdot(a, b)
        return product.cumsum(dim=1) if self.scope == "prefix" else product

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """All inner products of two sets of rows per group, in one pass over memory.

        Args:
            left: `(*groups, m, features)`.
            right: `(*groups, n, features)`, the larger set.

        Returns:
            `(*groups, m, n)`.
        """
        products = left @ right.mT
        return products.cumsum(dim=1) if self.scope == "prefix" else products

    @property
    def coupled(self) -> bool:
        """Whether a group's map depends on other groups (tokens of one sample), not only on itself."""
        return self.scope != "sample"
