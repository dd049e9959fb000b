"""Norms, residuals and inner products per group, in float32 at least."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equilibria.solvers.state import Packing, Scope

# Keeps a residual defined, and finite, where the value is zero: far below any norm that is not.
NOTHING = 1e-30
# Between these norms squares neither overflow nor underflow float32, down to a millionth of them: no units are needed.
COMFORTABLE = 2.0**-20, 2.0**30
# Growth alone makes a relative residual small, so the difference itself has to fall to this share too.
_FELL = 0.1
# A group is astray when its value is this many times larger than at the start, and no nearer to its iterate than it
# ever was; a hundredth less is rounding.
_GROWTH, _NEARER = 10.0, 0.99

Criterion = Literal["relative", "absolute"]


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1)


def as_residual(tol: float) -> float:
    """A tolerance as residuals are rounded, so that the host's comparisons are those of tensors."""
    return float(np.float32(tol))


def relative_residual(f_z: Tensor, z: Tensor) -> Tensor:
    """`‖f(z) − z‖ / ‖f(z)‖` over the last dimension, float32, infinite where it is not a number."""
    return _finite_or_infinite(norm(f_z - z) / norm(f_z).clamp(min=NOTHING))


def _finite_or_infinite(residual: Tensor) -> Tensor:
    return torch.nan_to_num(residual.float(), nan=torch.inf, posinf=torch.inf)


class Gauge:
    """How near each group of one solve is to a solution.

    A relative residual is that of the worst leaf of the state, so that a small leaf counts as much as a large one. It
    is relative to the value alone, whatever the units; only a value below the rounding of the leaf's start is zero.

    Attributes:
        packing: how states are packed; in units that keep squares within range, where the first values need them.
        scale: the larger norm of the start and of its value, `(*groups,)`; zeros before `begin`.
        peak: the largest norm of `f(z) − z` so far, `(*groups,)`.
    """

    def __init__(self, packing: Packing, criterion: Criterion, tol: float | Tensor) -> None:
        self.packing, self.criterion, self.tol = packing, criterion, tol
        self._floor: Tensor | float = NOTHING
        self.scale = self.peak = torch.zeros(())

    def begin(self, z: Tensor, f_z: Tensor, look: bool = True) -> tuple[Tensor, Tensor]:
        """Choose the units by the start and its value, `(*groups, features)` in units of one; returns both in them.
        `look` says whether the host may wait for the device, to see whether other units are needed."""
        norms = self._largest_norms(z, f_z)
        low, high = COMFORTABLE
        one_leaf = len(self.packing.sizes) == 1
        if not (look and one_leaf and bool(((norms >= low) & (norms <= high)).all())):
            units = self._units(z, f_z, look)
            if units is not None:
                self.packing = replace(self.packing, units=units)
                z, f_z = self.packing.scaled(z), self.packing.scaled(f_z)
                norms = self._largest_norms(z, f_z)
        self.set_scale(norms, z.dtype)
        return z, f_z

    def set_scale(self, norms: Tensor, dtype: torch.dtype) -> None:
        """Take the larger norms of the start and of its value, of each leaf, in the units there are."""
        self.scale = self.total(norms)
        self._floor = (torch.finfo(dtype).eps * norms).clamp(min=NOTHING)

    def _largest_norms(self, z: Tensor, f_z: Tensor) -> Tensor:
        """Per leaf; 0 where not finite."""
        return torch.nan_to_num(torch.maximum(self.norms(z), self.norms(f_z)), 0.0, 0.0)

    def _units(self, z: Tensor, f_z: Tensor, look: bool) -> Tensor | None:
        """Powers of two near the largest elements, `(*groups, leaves)`; None where none are needed."""
        low, high = COMFORTABLE
        # Elements, as the squares of a norm may overflow.
        sizes = torch.maximum(*(self._largest_elements(x) for x in (z, f_z)))
        largest = sizes.amax(dim=-1, keepdim=True)
        chosen = torch.where(sizes > 0, sizes, largest)
        units = torch.exp2(torch.floor(torch.log2(torch.where(chosen > 0, chosen, 1.0))))
        if len(self.packing.sizes) > 1:
            return units
        fine = ((largest >= low) & (largest <= high)) | (largest == 0)
        return None if look and bool(fine.all()) else torch.where(fine, 1.0, units)

    def _largest_elements(self, x: Tensor) -> Tensor:
        """Of each leaf, `(*groups, leaves)`; 0 where not finite."""
        parts = x.split(self.packing.sizes, dim=-1)
        largest = [part.abs().amax(-1) if part.shape[-1] else part.new_zeros(part.shape[:-1]) for part in parts]
        return torch.nan_to_num(torch.stack(largest, dim=-1), 0.0, 0.0, 0.0)

    def norms(self, x: Tensor) -> Tensor:
        """Of each leaf, `(*groups, leaves)`; of a lone leaf `(*groups,)`."""
        if len(self.packing.sizes) == 1:
            return norm(x)
        return torch.stack([norm(part) for part in x.split(self.packing.sizes, dim=-1)], dim=-1)

    def total(self, norms: Tensor) -> Tensor:
        """The norm of a group from those of its leaves."""
        return norms if len(self.packing.sizes) == 1 else norm(norms)

    def residual(self, value: Tensor, difference: Tensor) -> Tensor:
        """From the `norms` of `f(z)` and of `f(z) − z`: float32, `(*groups,)`, infinite where it is not a number."""
        return _finite_or_infinite(self.ratio(value, difference))

    def ratio(self, value: Tensor, difference: Tensor) -> Tensor:
        """The same, as it comes: not a number where that is none, and in the precision of the norms."""
        units = self.packing.units
        if self.criterion == "absolute":
            if units is not None:
                difference = difference * (units if difference.dim() == units.dim() else units.squeeze(-1))
            return self.total(difference)
        ratio = difference / torch.clamp(value, min=self._floor)
        return ratio if len(self.packing.sizes) == 1 else ratio.amax(dim=-1)

    def measure(self, value: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residuals from `f(z)` and `f(z) − z`, and the norms of these, `(*groups,)` each."""
        values, differences = self.norms(value), self.norms(difference)
        return self.residual(values, differences), self.total(values), self.total(differences)

    def note(self, difference: Tensor, finite: Tensor | None = None) -> None:
        """Take in the norm of `f(z) − z`, `(*groups,)`, where it is finite; None means everywhere."""
        if finite is not None:
            difference = torch.where(finite, difference, 0.0)
        self.peak = torch.maximum(self.peak, difference) if self.peak.dim() == difference.dim() else difference

    def grown(self, value: Tensor, difference: Tensor) -> Tensor:
        """Which groups would owe a small relative residual to growth alone, from the norms of `f(z)` and `f(z) − z`:
        the difference of `z + 1` is always 1, and relative to the value it falls without end."""
        if self.criterion == "absolute":
            return torch.zeros_like(difference, dtype=torch.bool)
        # A value that has grown may have lost the difference in its rounding; a norm that overflowed says nothing.
        rounding = torch.finfo(value.dtype).eps * value * (value > _GROWTH * self.scale)
        wanted = torch.maximum(self.tol * self.scale, _FELL * self.peak)
        return (difference + rounding > wanted) | ~(value < torch.inf)

    def astray(self, value: Tensor, difference: Tensor) -> Tensor:
        """Which groups grew without bound and came no nearer to a solution, from the same norms."""
        return (value > _GROWTH * self.scale) & (difference >= _NEARER * self.peak) & (difference > 0)


class Groups:
    """The inner product of a scope: over features, accumulated along the second dimension for `"prefix"`."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """`⟨a, b⟩` per group: `(*groups, features) × (*groups, features) → (*groups,)`."""
        product = torch.linalg.vecdot(a, b)
        return product.cumsum(dim=1) if self.scope == "prefix" and product.shape[1] > 1 else product

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """All inner products per group: `(*groups, m, features) × (*groups, n, features) → (*groups, m, n)`."""
        products = left @ right.mT
        return products.cumsum(dim=1) if self.scope == "prefix" else products

    @property
    def coupled(self) -> bool:
        """Whether a group's map depends on other groups by design: tokens of one sample do."""
        return self.scope in ("token", "prefix")
