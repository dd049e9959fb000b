"""A cell's map over a cache: what a depth applies when tokens are added to those that have been read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equilibria.cells import CacheView, Cell
from equilibria.depths import Reached


class CachedMap:
    """`z ↦ f(z; x)` whose evaluations leave keys and values in the segment's slots of a cache.

    Args:
        cell: the map.
        inputs_BLD: of the segment; zeroed at padding, where states stay what they are.
        views: one part of a cache, or one for each application of an explicit depth.
        present_BL1: False at padding; None where there is none.
        logits: of a final state; None where a state does not lead to them token by token.
    """

    def __init__(
        self,
        cell: Cell,
        inputs_BLD: Tensor,
        views: Sequence[CacheView],
        present_BL1: Tensor | None,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._logits = logits
        self.cell = cell
        self.inputs_BLD = inputs_BLD if present_BL1 is None else inputs_BLD * present_BL1
        self._present_BL1 = present_BL1
        self._bound = cell.bind(self.inputs_BLD, views[0])
        self._following = iter(views[1:])
        self._several = len(views) > 1
        self._argument: Tensor | None = None
        self._value: Tensor | None = None

    def __call__(self, z_BLD: Tensor) -> Tensor:
        """One evaluation; the next of several parts is the one that it fills."""
        if self._several and self._argument is not None:
            self._bound = self._bound.over(next(self._following))
        value = self._bound(z_BLD)
        self._argument = z_BLD
        if self._present_BL1 is not None:
            value = torch.where(self._present_BL1, value, z_BLD)
        self._value = value
        if self._several:
            self._bound.keep(z_BLD, value)
        return value

    def at(self, row: int, tokens_T: Tensor) -> Callable[[Tensor], Tensor]:
        """The map at some tokens of a row, `(1, T, ·)`, the others being as they were last evaluated."""
        return self._bound.at(row, tokens_T)

    def hold(self, z_BLD: Tensor) -> None:
        """Every token was last evaluated at its state in `z`: the cache holds what belongs there."""
        self._argument = z_BLD

    def predictions(self, z_BLD: Tensor) -> Tensor:
        """Log-probabilities `(B, L, V)` of the next tokens.

        Raises:
            ValueError: layers behind the depth mix tokens.
        """
        if self._logits is None:
            raise ValueError("predictions of a model with a coda need all its tokens; let tokens leave by residual")
        return self._logits(self.cell.readout(z_BLD)).log_softmax(-1)

    def settle(self, reached: Reached) -> None:
        """Have the cache hold what belongs to where the depth arrived; solvers that return what they measured last have
        left that there."""
        if self._several:
            return
        final = reached.state if reached.argument is None else reached.argument
        if self._argument is None or not torch.equal(self._argument, final):
            self(final)
        assert self._value is not None
        self._bound.keep(final, self._value)


def applied_once(cell: Cell, inputs_BLD: Tensor, view: CacheView, present_BL1: Tensor | None) -> Tensor:
    """The output of a cell applied once, as preludes and codas are."""
    applied = CachedMap(cell, inputs_BLD, [view], present_BL1)
    start = cell.initial_state(applied.inputs_BLD)
    value = applied(start)
    applied.settle(Reached(value, argument=start))
    return cell.readout(value)
