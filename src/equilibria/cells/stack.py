"""Several cells as one, each with its own part of the memory.

Applied once (`UnrolledDepth(1)`), cells without injection are an ordinary explicit network, such as a Transformer-XL;
solved, they are one equilibrium of several layers. The same cell repeated is a network with tied weights whose layers
have memories of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equilibria.cells.base import BoundMap, Cell, Memory, Past, furthest, shared_columns
from equilibria.cells.cache import CacheView, Entry


class StackedCell(Cell):
    """Cells applied one after another in every evaluation.

    Those that inject inputs inject the same ones. A layer remembers its own input.

    Args:
        cells: the layers, of one width, causal or not alike, and of one grid; the same one again where weights are
            tied.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        widths = [cell.d_model for cell in cells]
        if len(set(widths)) != 1:
            raise ValueError(f"a stack needs at least one cell, and all of one width; found widths {widths}")
        self.cells = nn.ModuleList(cells)
        self.d_model = widths[0]
        self.layers_per_application = sum(cell.layers_per_application for cell in cells)
        self.remembered = sum(cell.remembered for cell in cells)
        self.injection = any(cell.injection for cell in cells)
        self.causal = cells[0].causal
        if any(cell.causal != self.causal for cell in cells):
            raise ValueError(f"cells of a stack are all causal or none is; found {[cell.causal for cell in cells]}")
        self.columns = shared_columns(cells)

    @property
    def remembers_argument(self) -> bool:
        """Always: that is where the layers' inputs come from."""
        return True

    def initial_state(self, inputs_BLD: Tensor) -> Tensor:
        return next(self._layers()).initial_state(inputs_BLD)

    def readout(self, z: Tensor) -> Tensor:
        *_, last = self._layers()
        return last.readout(z)

    @property
    def output_size(self) -> int:
        *_, last = self._layers()
        return last.output_size

    @property
    def cached(self) -> tuple[Entry, ...]:
        return tuple(entry for cell in self._layers() for entry in cell.cached)

    @property
    def reach(self) -> int | None:
        return furthest(cell.reach for cell in self._layers())

    @property
    def separable(self) -> bool:
        return all(cell.separable for cell in self._layers())

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> StackedMap:
        parts: Sequence[Past]
        if isinstance(past, CacheView):
            parts = past.split([len(cell.cached) for cell in self._layers()])
        else:
            parts = Memory.split(past, [cell.remembered for cell in self._layers()])
        layers = (cell.bind(inputs_BLD, part) for cell, part in zip(self._layers(), parts, strict=True))
        return StackedMap(self, tuple(layers))

    def _layers(self) -> Iterator[Cell]:
        for cell in self.cells:
            assert isinstance(cell, Cell)
            yield cell


@dataclass(frozen=True, eq=False)
class StackedMap(BoundMap[StackedCell]):
    """Every layer bound, and the input of each in the latest evaluation, cut from the graph: checkpointing holds on to
    the map, so that a graph here would close a circle."""

    layers: tuple[BoundMap[Any], ...]
    latest: list[Tensor] = field(default_factory=list)

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        value, inputs = self._pass(z_BLD)
        self.latest[:] = [h.detach() for h in inputs]
        return value

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        """What each layer remembers of its input; without gradients the latest evaluation is not repeated."""
        inputs = self.latest if latest and not torch.is_grad_enabled() else self._pass(z_BLD)[1]
        return tuple(state for layer, h in zip(self.layers, inputs, strict=True) for state in layer.remember(h))

    def over(self, view: CacheView) -> StackedMap:
        parts = view.split([len(layer.cell.cached) for layer in self.layers])
        return StackedMap(self.cell, tuple(layer.over(part) for layer, part in zip(self.layers, parts, strict=True)))

    def at(self, row: int, tokens_T: Tensor) -> StackedMap:
        return StackedMap(self.cell, tuple(layer.at(row, tokens_T) for layer in self.layers))

    def keep(self, z_BLD: Tensor, value_BLD: Tensor) -> None:
        for layer, h, value in zip(self.layers, self.latest, [*self.latest[1:], value_BLD], strict=True):
            layer.keep(h, value)

    def _pass(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The value at `z`, and the input of each layer on the way."""
        inputs = []
        for layer in self.layers:
            inputs.append(z)
            z = layer(z)
        return z, inputs
