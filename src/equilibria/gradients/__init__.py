"""Ways of differentiating a solution, one file each; all are a `Gradient`."""

from equilibria.gradients.adjoint import Pullback, PullbackGradient, TrackedEvaluation
from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.correction import fixed_point_correction
from equilibria.gradients.guarded import Guarded
from equilibria.gradients.implicit import AdjointMemory, Implicit
from equilibria.gradients.jacobian_free import JacobianFree
from equilibria.gradients.neumann import Neumann
from equilibria.gradients.phantom import Phantom
from equilibria.gradients.reuse_inverse import ReuseInverse
from equilibria.gradients.reversible import Reversible
from equilibria.gradients.switching import Switching
from equilibria.gradients.unrolled import Unrolled

__all__ = [
    "AdjointMemory",
    "Attached",
    "Gradient",
    "Guarded",
    "Implicit",
    "JacobianFree",
    "Neumann",
    "Phantom",
    "Pullback",
    "PullbackGradient",
    "ReuseInverse",
    "Reversible",
    "Solve",
    "Switching",
    "TrackedEvaluation",
    "Unrolled",
    "fixed_point_correction",
]
