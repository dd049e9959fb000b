"""The depth of an ordinary network: layers, each applied once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from equilibria.cells import Cell, StackedCell, TransformerXLCell
from equilibria.cells.base import check_layers
from equilibria.cells.transformer_xl import share_position_biases
from equilibria.depths.base import Depth, Reached


@dataclass(frozen=True)
class Stack(Depth):
    """Separate layers, each applied once: the cell is all of them.

    Args:
        layers: how many, at least 1.
        tied: whether they are one and the same, each with a memory of its own.
        shared_biases: whether they share the two biases of relative attention.
    """

    layers: int = 18
    tied: bool = False
    shared_biases: bool = False

    def __post_init__(self) -> None:
        check_layers("layers", self.layers)
        if self.tied and self.shared_biases:
            raise ValueError("shared_biases has no use beside tied layers, which share everything; leave it out")

    @property
    def cache_parts(self) -> int:
        """One, of all layers."""
        return 1

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """All layers once."""
        return Reached(f(z0), argument=z0)

    def arrange(self, make: Callable[[bool], Cell]) -> Cell:
        """The layers, without injection.

        Raises:
            ValueError: they shall share biases that they do not have.
        """
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
