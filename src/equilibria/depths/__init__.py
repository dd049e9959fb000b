"""Depths: how often a cell is applied, and how that is differentiated. Frozen objects without parameters."""

from equilibria.depths.base import Depth, Reached
from equilibria.depths.equilibrium import Equilibrium
from equilibria.depths.unrolled import UnrolledDepth

__all__ = ["Depth", "Equilibrium", "Reached", "UnrolledDepth"]
