"""Ways of differentiating a solution, one file each; all are frozen objects with `attach`."""

from equilibria.gradients.base import Gradient
from equilibria.gradients.implicit import Implicit
from equilibria.gradients.phantom import Phantom
from equilibria.gradients.unrolled import Unrolled

__all__ = ["Gradient", "Implicit", "Phantom", "Unrolled"]
