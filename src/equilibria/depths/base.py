"""The one thing a depth does: take a map and a start to a final state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from equilibria.cells import Cell
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


class Depth(ABC):
    """How often a map is applied. What changes over training is known from a step's number alone.

    Attributes:
        solves: whether it goes on until nothing changes, so that it arrives at the same state from anywhere.
    """

    solves: bool = False

    @property
    def cache_parts(self) -> int | None:
        """How many parts a cache has, as each application of an explicit depth has its own; None where there is none,
        and a text cannot be decoded."""
        return 1 if self.solves else None

    @abstractmethod
    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`."""

    def at(self, step: int, steps: int, seed: int) -> Depth:
        """The depth of a training step; itself, where nothing changes over training.

        Args:
            step: its number, from 0.
            steps: how many there will be.
            seed: of all that is drawn.
        """
        del step, steps, seed
        return self

    def warmup(self, steps: int) -> int:
        """How many of so many training steps, the first ones, are at another depth than this."""
        del steps
        return 0

    def steady(self) -> Depth:
        """This depth, with nothing that changes over training."""
        return self

    def arrange(self, make: Callable[[bool], Cell]) -> Cell:
        """The cell that a model applies at this depth.

        Args:
            make: a new cell; its argument says whether the input is injected.
        """
        return make(True)


def check_states_every(states_every: int | None) -> None:
    """Raises ValueError for an impossible interval."""
    if states_every is not None and states_every < 1:
        raise ValueError(f"states_every must be at least 1, or None for none, found {states_every}")
