"""Depths: how often a cell is applied, and how that is differentiated. Frozen objects."""

from equilibria.depths.adaptive import Adaptive
from equilibria.depths.base import Depth, Reached
from equilibria.depths.chunks import ChunkedSolution
from equilibria.depths.equilibrium import Equilibrium
from equilibria.depths.exits import Exit, ExitAfter, ExitOnChange, ExitOnResidual
from equilibria.depths.explicit import Stack, UnrolledDepth
from equilibria.depths.noise import PathNoise
from equilibria.depths.schedule import (
    DepthSchedule,
    GrowingLimits,
    JacobianPenalty,
    Limits,
    RandomLimits,
    ResidualPenalty,
)
from equilibria.depths.starts import RandomStart, Restarts

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
    "JacobianPenalty",
    "Limits",
    "PathNoise",
    "RandomLimits",
    "RandomStart",
    "Reached",
    "ResidualPenalty",
    "Restarts",
    "Stack",
    "UnrolledDepth",
]
