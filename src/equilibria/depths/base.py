"""What every depth does: take a map and a start to a final state."""

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
        penalty: what to add to the loss in training, None for nothing.
        states: in training, states on the way, where the depth was asked for them; each differentiable as `state` is.
        argument: the argument of the last application, where `state` is its result; None where it is not, as for a
            solution or a mean of states.
    """

    state: Tensor
    solution: Solution | None = None
    penalty: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    argument: Tensor | None = None


class Depth(ABC):
    """How often a map is applied. What changes over training is known from a step's number alone.

    Attributes:
        solves: whether it solves for a fixed point, so that it arrives at the same state from anywhere.
        rounds: solves of a training step, each of which begins where the one before it ended; 1 unless it solves.
    """

    solves: bool = False
    rounds: int = 1

    @property
    def cache_parts(self) -> int | None:
        """How many parts a cache has: one per application of an explicit depth; None where texts cannot be decoded."""
        return 1 if self.solves else None

    def obstacle(self, cell: Cell) -> str | None:
        """Why a cell cannot be applied at this depth; None where it can."""
        del cell
        return None

    def leak(self, cell: Cell) -> str | None:
        """How a token of a causal cell would see later ones at this depth; None where it cannot."""
        del cell
        return None

    @abstractmethod
    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`."""

    def at(self, step: int, steps: int, seed: int) -> Depth:
        """The depth of training step `step`, from 0, of `steps`, with the seed of all that is drawn."""
        return self

    def warmup(self, steps: int) -> int:
        """How many of the first training steps are at another depth than this."""
        return 0

    def steady(self) -> Depth:
        """This depth, with nothing that changes over training."""
        return self

    def stricter(self, share: float) -> Depth:
        """This depth with a share of its tolerance, where it has one."""
        return self

    def continued(self, states_BLD: Tensor) -> Depth:
        """The depth of the next round of a training step, which begins at these states."""
        return Continued(self, states_BLD)

    def of_tokens(self, first: int, last: int) -> Depth:
        """The depth of a chunk of a forward pass: its tokens from `first` to before `last`."""
        del first, last
        return self

    def arrange(self, make: Callable[[bool], Cell]) -> Cell:
        """The cell that a model applies at this depth, of cells that `make` makes, with or without injection."""
        return make(True)


@dataclass(frozen=True, eq=False)
class Continued(Depth):
    """A depth that begins at given states instead of the cell's start.

    Args:
        depth: what is done from there.
        states_BLD: of all tokens of a forward pass; `of_tokens` takes those of a chunk.
    """

    in_recipes = False
    solves = True

    depth: Depth
    states_BLD: Tensor

    def obstacle(self, cell: Cell) -> str | None:
        return self.depth.obstacle(cell)

    def leak(self, cell: Cell) -> str | None:
        return self.depth.leak(cell)

    def of_tokens(self, first: int, last: int) -> Depth:
        return Continued(self.depth.of_tokens(first, last), self.states_BLD[:, first:last])

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Go on from the states; raises ValueError where they are of other tokens than `z0`."""
        if z0.shape != self.states_BLD.shape:
            found = f"{tuple(self.states_BLD.shape)} for a start of shape {tuple(z0.shape)}"
            raise ValueError(f"a solve goes on from states of its own tokens; found {found}")
        return self.depth.reach(f, self.states_BLD, training)
