"""Norms, residuals and inner products per group, in float32 at least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers.state import Scope

# Keeps a residual defined at the origin; far below any norm of interest.
EPSILON = 1e-8


def relative_residual(f_z: Tensor, z: Tensor) -> Tensor:
    """`‖f(z) − z‖ / (‖f(z)‖ + ε)` over the last dimension, float32, infinite where it is not a number."""
    difference = torch.linalg.vector_norm(f_z - z, dim=-1)
    residual = (difference / (torch.linalg.vector_norm(f_z, dim=-1) + EPSILON)).float()
    return torch.nan_to_num(residual, nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Groups:
    """The inner product of a scope: over features, accumulated along the second dimension for `"prefix"`."""

    scope: Scope

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """`⟨a, b⟩` per group: `(*groups, features) × (*groups, features) → (*groups,)`."""
        product = torch.linalg.vecdot(a, b)
        return product.cumsum(dim=1) if self.scope == "prefix" else product

    @property
    def coupled(self) -> bool:
        """Whether a group's map depends on other groups (tokens of one sample), not only on itself."""
        return self.scope != "sample"
