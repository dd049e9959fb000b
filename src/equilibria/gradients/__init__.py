"""Ways of differentiating a solution; each is a `Gradient`."""

from equilibria.gradients.adjoint import Pullback, PullbackGradient, TrackedEvaluation
from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.guarded import Guarded, Switching
from equilibria.gradients.implicit import AdjointMemory, Implicit
from equilibria.gradients.neumann import JacobianFree, Neumann
from equilibria.gradients.reuse_inverse import ReuseInverse
from equilibria.gradients.reversible import Reversible
from equilibria.gradients.unrolled import Phantom, Unrolled

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
]
