"""The one thing a depth does: take a map and a start to a final state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from equilibria.solvers import Solution


@dataclass(frozen=True)
class Reached:
    """Where a depth has arrived.

    Attributes:
        state: the final state `(B, L, D)`.
        solution: the solve and its statistics, None for explicit depths.
        penalty: what the depth asks to be added to the loss in training, None where that is nothing.
    """

    state: Tensor
    solution: Solution | None = None
    penalty: Tensor | None = None


class Depth(Protocol):
    """How often a map is applied."""

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`."""
        ...
