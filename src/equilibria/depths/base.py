"""The one thing a depth does: take a map and a start to a final state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from equilibria.solvers import Solution


@dataclass(frozen=True)
class Reached:
    """A final state `(B, L, D)` and, where the depth is an equilibrium, the solution it belongs to."""

    state: Tensor
    solution: Solution | None


class Depth(Protocol):
    """How often a map is applied."""

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`."""
        ...
