"""Which classes may stand where in a recipe, and the packages whose classes have short names.

A class of one's own needs nothing here: it is named by where it is imported from.
"""

from torch import optim

from equilibria.cells import Cell
from equilibria.configuration.kinds import Family, declare
from equilibria.data import Source, Task
from equilibria.depths import Depth, Limits
from equilibria.gradients import Gradient
from equilibria.models import ModelRecipe
from equilibria.nn import TokenEmbedding
from equilibria.optimization import Averaging, Optimizer, Schedule
from equilibria.solvers import AdjointSolver, Solver

declare(
    Family("solver", (Solver,), ("equilibria.solvers",), tag="method"),
    Family("adjoint solver", (AdjointSolver,), ("equilibria.solvers",), tag="method"),
    Family("gradient", (Gradient,), ("equilibria.gradients",), tag="method"),
    Family("cell", (Cell,), ("equilibria.cells",), endings=("Cell",), supplied=frozenset({"injection"})),
    Family("depth", (Depth,), ("equilibria.depths",), endings=("Depth",), supplied=frozenset({"d_model"})),
    Family("kind of limits", (Limits,), ("equilibria.depths",), endings=("Limits",)),
    Family(
        "embedding",
        (TokenEmbedding,),
        ("equilibria.nn",),
        endings=("Embedding",),
        supplied=frozenset({"vocabulary_size", "d_model", "d_output"}),
    ),
    Family("model", (ModelRecipe,), ("equilibria.models",), endings=("Recipe",)),
    Family("source", (Source, Task), ("equilibria.data.sources", "equilibria.data.tasks"), "source", ("Text",)),
    Family(
        "optimizer",
        (Optimizer, optim.Optimizer),
        ("equilibria.optimization.optimizers",),
        supplied=frozenset({"params", "lr", "learning_rate"}),
    ),
    Family("schedule", (Schedule,), ("equilibria.optimization",)),
    Family("averaging", (Averaging,), ("equilibria.optimization",)),
)
