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
        state: the final state `(B, L, ·)`.
        solution: the solve and its statistics, None for explicit depths.
        penalty: what the depth asks to be added to the loss in training, None where that is nothing.
        states: in training, states on the way, where the depth was asked for them; each differentiable as `state` is.
        argument: what the last application was made at, where `state` is its result; None where `state` is none's:
            a solution, or a mean of states.
    """

    state: Tensor
    solution: Solution | None = None
    penalty: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    argument: Tensor | None = None


class Depth(Protocol):
    """How often a map is applied."""

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`."""
        ...


def check_states_every(states_every: int | None) -> None:
    """Raises ValueError for an impossible interval."""
    if states_every is not None and states_every < 1:
        raise ValueError(f"states_every must be at least 1, or None for none, found {states_every}")
