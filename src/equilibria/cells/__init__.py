"""Cells: one map `z_next = f(z; context)` each, and what of it does not depend on `z`."""

from equilibria.cells.base import Cell, Memory
from equilibria.cells.cache import Cache, CacheView
from equilibria.cells.contractive import ContractiveCell
from equilibria.cells.post_norm import PostNormCell
from equilibria.cells.stack import StackedCell
from equilibria.cells.three_block import ThreeBlockCell
from equilibria.cells.trellis import TrellisCell

__all__ = [
    "Cache",
    "CacheView",
    "Cell",
    "ContractiveCell",
    "Memory",
    "PostNormCell",
    "StackedCell",
    "ThreeBlockCell",
    "TrellisCell",
]
