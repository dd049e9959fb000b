"""Depths: how often a cell is applied, and how that is differentiated. Frozen objects; `Halting` has parameters."""

from equilibria.depths.adaptive import Adaptive
from equilibria.depths.base import Depth, Reached
from equilibria.depths.chunks import ChunkedSolution, joined
from equilibria.depths.equilibrium import Equilibrium
from equilibria.depths.exits import Exit, ExitAfter, ExitOnChange, ExitOnResidual
from equilibria.depths.halting import Halting, Pondered
from equilibria.depths.schedule import (
    DepthSchedule,
    GrowingLimits,
    JacobianPenalty,
    Limits,
    RandomLimits,
    ResidualPenalty,
)
from equilibria.depths.stack import Stack
from equilibria.depths.unrolled import UnrolledDepth

__all__ = [
    "Adaptive",
    "ChunkedSolution",
    "Depth",
    "DepthSchedule",
    "Equilibrium",
    "Exit",
    "ExitAfter",
    "ExitOnChange",
    "ExitOnResidual",
    "GrowingLimits",
    "Halting",
    "JacobianPenalty",
    "Limits",
    "Pondered",
    "RandomLimits",
    "Reached",
    "ResidualPenalty",
    "Stack",
    "UnrolledDepth",
    "joined",
]
