"""The depths of explicit networks, by ordinary backpropagation: one cell applied a fixed number of times, or layers."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from equilibria.cells import Cell, StackedCell, TransformerXLCell
from equilibria.cells.transformer_xl import share_position_biases
from equilibria.depths.base import Depth, Reached
from equilibria.ranges import layers, whole


@dataclass(frozen=True)
class UnrolledDepth(Depth):
    """Apply the cell a fixed number of times. There is no solution to report.

    Args:
        applications: how often, at least 1.
        checkpoint: keep only the state between applications and recompute the rest in the backward pass.
        states_every: in training, return the state after every so many applications too, for auxiliary losses, except
            the last. None for no states.
    """

    applications: int = 18
    checkpoint: bool = False
    states_every: int | None = None

    def __post_init__(self) -> None:
        whole(1, applications=self.applications, states_every=self.states_every)

    @property
    def cache_parts(self) -> int:
        return self.applications

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        argument = z = z0
        states = []
        for done in range(self.applications):
            if done and training and self.states_every and done % self.states_every == 0:
                states.append(z)
            argument = z
            z = recompute(f, z, use_reentrant=False) if self.checkpoint and training else f(z)
        return Reached(z, states=tuple(states), argument=argument)


@dataclass(frozen=True)
class Stack(Depth):
    """Separate layers, each applied once: the cell is all of them.

    Args:
        layers: how many, at least 1.
        tied: whether they share all weights; each still has a memory of its own.
        shared_biases: whether they share the two biases of relative attention.
    """

    layers: int = 18
    tied: bool = False
    shared_biases: bool = False

    def __post_init__(self) -> None:
        layers(layers=self.layers)
        if self.tied and self.shared_biases:
            raise ValueError("shared_biases has no effect on tied layers, which share everything; drop it")

    @property
    def cache_parts(self) -> int:
        return 1

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        return Reached(f(z0), argument=z0)

    def arrange(self, make: Callable[[bool], Cell]) -> Cell:
        """The layers, without injection; raises ValueError where they have no biases to share."""
        if self.tied:
            return StackedCell([make(False)] * self.layers)
        cells = [make(False) for _ in range(self.layers)]
        if self.shared_biases:
            attending = [cell for cell in cells if isinstance(cell, TransformerXLCell)]
            if not attending:
                name = type(cells[0]).__name__
                raise ValueError(f"shared_biases is for layers of relative attention; a {name} has no such biases")
            share_position_biases(attending)
        return StackedCell(cells)
