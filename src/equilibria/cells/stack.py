"""Several cells as one: each with its own context and its own part of the memory.

Applied once (`UnrolledDepth(1)`), cells without injection are an ordinary explicit network, such as a Transformer-XL;
solved, they are one equilibrium of several layers. The same cell repeated is a network with tied weights whose layers
still remember apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equilibria.cells.base import Cell, Memory, Past, furthest
from equilibria.cells.cache import CacheView, Entry


@dataclass
class _Latest:
    """The latest evaluation: its argument, not kept alive, and the input of every layer, cut from the graph.

    With a graph they could close a circle: recomputing (checkpointing) holds on to the context.
    """

    argument: weakref.ref[Tensor] | None = None
    inputs: list[Tensor] = field(default_factory=list)

    def of(self, z: Tensor) -> list[Tensor] | None:
        """The layers' inputs in the evaluation at `z`; None where that was not the latest, or a graph is wanted."""
        known = self.argument is not None and self.argument() is z
        return self.inputs if known and not torch.is_grad_enabled() else None


@dataclass(frozen=True)
class StackedContext:
    """The context of every layer, and the latest evaluation, so that remembering it needs no other."""

    layers: tuple[Any, ...]
    latest: _Latest = field(default_factory=_Latest)


class StackedCell(Cell[StackedContext]):
    """Cells applied one after another in every evaluation.

    All inject the same embedded inputs, those of them that inject any. A layer remembers its own input.

    Args:
        cells: the layers, of one width; the same one again where weights are tied.
    """

    def __init__(self, cells: Sequence[Cell[Any]]) -> None:
        super().__init__()
        widths = [cell.d_model for cell in cells]
        if len(set(widths)) != 1:
            raise ValueError(f"a stack needs at least one cell, and all of one width; found widths {widths}")
        self.cells = nn.ModuleList(cells)
        self.d_model = widths[0]
        self.layers_per_application = sum(cell.layers_per_application for cell in cells)
        self.remembered = sum(cell.remembered for cell in cells)
        self.injection = any(cell.injection for cell in cells)

    @property
    def remembers_argument(self) -> bool:
        """Always: that is where the layers' inputs come from."""
        return True

    def initial_state(self, inputs_BLD: Tensor) -> Tensor:
        """Where the first layer starts."""
        return next(self._layers()).initial_state(inputs_BLD)

    def readout(self, z: Tensor) -> Tensor:
        """The output of the last layer."""
        *_, last = self._layers()
        return last.readout(z)

    @property
    def cached(self) -> tuple[Entry, ...]:
        """What each layer keeps."""
        return tuple(entry for cell in self._layers() for entry in cell.cached)

    @property
    def reach(self) -> int | None:
        """That of the layer that looks back furthest."""
        return furthest(cell.reach for cell in self._layers())

    def context(self, inputs_BLD: Tensor, memory: Past = None) -> StackedContext:
        """The context of each layer, with its part of the past."""
        parts = self._parts(memory)
        layers = (cell.context(inputs_BLD, part) for cell, part in zip(self._layers(), parts, strict=True))
        return StackedContext(tuple(layers))

    def over(self, context: StackedContext, view: CacheView) -> StackedContext:
        """Each layer's context over its part."""
        parts = view.split([len(cell.cached) for cell in self._layers()])
        layers = zip(self._layers(), context.layers, parts, strict=True)
        return StackedContext(tuple(cell.over(layer, part) for cell, layer, part in layers))

    @property
    def separable(self) -> bool:
        """Whether the tokens of every layer are."""
        return all(cell.separable for cell in self._layers())

    def at(self, context: StackedContext, row: int, tokens_T: Tensor) -> StackedContext:
        """Each layer's context of some tokens of a row."""
        layers = zip(self._layers(), context.layers, strict=True)
        return StackedContext(tuple(cell.at(layer, row, tokens_T) for cell, layer in layers))

    def keep(self, z_BLD: Tensor, value_BLD: Tensor, context: StackedContext) -> None:
        """Each layer keeps what belongs to its part of the evaluation."""
        inputs = context.latest.of(z_BLD)
        if inputs is None:
            _, inputs = self._pass(z_BLD, context)
        for cell, h, value, layer in zip(self._layers(), inputs, [*inputs[1:], value_BLD], context.layers, strict=True):
            cell.keep(h, value, layer)

    def forward(self, z_BLD: Tensor, context: StackedContext) -> Tensor:
        """One evaluation of every layer."""
        value, inputs = self._pass(z_BLD, context)
        context.latest.argument, context.latest.inputs = weakref.ref(z_BLD), [h.detach() for h in inputs]
        return value

    def remember(self, z_BLD: Tensor, context: StackedContext) -> tuple[Tensor, ...]:
        """What each layer remembers of its input in the evaluation at `z`.

        Without gradients this costs no evaluation where the latest was at this very tensor.
        """
        inputs = context.latest.of(z_BLD)
        if inputs is None:
            _, inputs = self._pass(z_BLD, context)
        layers = zip(self._layers(), inputs, context.layers, strict=True)
        return tuple(state for cell, h, layer in layers for state in cell.remember(h, layer))

    def _parts(self, past: Past) -> Sequence[Past]:
        """The layers' parts of the past."""
        if isinstance(past, CacheView):
            return past.split([len(cell.cached) for cell in self._layers()])
        return Memory.split(past, [cell.remembered for cell in self._layers()])

    def _pass(self, z: Tensor, context: StackedContext) -> tuple[Tensor, list[Tensor]]:
        """The value at `z`, and the input of each layer on the way."""
        inputs = []
        for cell, layer in zip(self._layers(), context.layers, strict=True):
            inputs.append(z)
            z = cell(z, layer)
        return z, inputs

    def _layers(self) -> Iterator[Cell[Any]]:
        for cell in self.cells:
            assert isinstance(cell, Cell)
            yield cell
