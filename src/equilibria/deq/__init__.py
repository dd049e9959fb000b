"""`fixed_point`, a solver and a gradient joined; and `DEQ`, the same as a module."""

from equilibria.deq.failures import OnFailure
from equilibria.deq.module import DEQ
from equilibria.deq.solving import fixed_point

__all__ = ["DEQ", "OnFailure", "fixed_point"]
