"""Root finding on tensors: methods, the one solve loop, and what a solve returns. It imports
only torch and the checks of numbers."""

from equilibria.solvers.anderson import Anderson
from equilibria.solvers.base import AdjointSolver, Draft, Solver
from equilibria.solvers.broyden import Broyden
from equilibria.solvers.krylov import GMRES
from equilibria.solvers.newton_krylov import NewtonKrylov
from equilibria.solvers.picard import Picard
from equilibria.solvers.point import CountedMap, Map, Point
from equilibria.solvers.residual import Criterion, Groups
from equilibria.solvers.solution import (
    AdjointReport,
    ConvergenceError,
    ConvergenceWarning,
    Iterate,
    Outcome,
    Solution,
    Status,
)
from equilibria.solvers.state import Scope, State

__all__ = [
    "GMRES",
    "AdjointReport",
    "AdjointSolver",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "CountedMap",
    "Criterion",
    "Draft",
    "Groups",
    "Iterate",
    "Map",
    "NewtonKrylov",
    "Outcome",
    "Picard",
    "Point",
    "Scope",
    "Solution",
    "Solver",
    "State",
    "Status",
]
