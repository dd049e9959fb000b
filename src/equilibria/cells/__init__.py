"""Cells: one map `z_next = f(z)` each, bound to the inputs and the past of a segment."""

from equilibria.cells.base import BoundMap, Cell, Memory
from equilibria.cells.cache import Cache, CacheView
from equilibria.cells.contractive import ContractiveCell
from equilibria.cells.stack import StackedCell
from equilibria.cells.transformer_xl import TransformerXLCell
from equilibria.cells.trellis import TrellisCell

__all__ = [
    "BoundMap",
    "Cache",
    "CacheView",
    "Cell",
    "ContractiveCell",
    "Memory",
    "StackedCell",
    "TransformerXLCell",
    "TrellisCell",
]
