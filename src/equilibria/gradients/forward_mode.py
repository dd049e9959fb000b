"""Forward-mode derivatives of a solution: the tangent is itself a fixed point.

Where `z = f(z, θ)` and `θ` moves with `θ'`, the solution moves with `z' = J z' + ∂f/∂θ θ'`. The right-hand side is what
one forward-mode evaluation of `f` at the solution with tangent `z'` returns, and it is affine in `z'`.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.autograd import forward_ad

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.guarded import Guarded
from equilibria.gradients.implicit import Implicit
from equilibria.solvers import AdjointSolver, Map, State
from equilibria.solvers.state import Packing, leaves, leaves_as, rebuild

_ADVICE = "this tangent is wrong; give Implicit(GMRES(max_evaluations=...)) more of them"


def active() -> bool:
    """Whether the caller is taking forward-mode derivatives (`torch.func.jvp` or `torch.autograd.forward_ad`)."""
    return forward_ad._current_level >= 0


@dataclass(frozen=True)
class Tangent(Gradient):
    """Give the solution the tangent that follows from those of what the map closes over, and no graph.

    Args:
        solver: of the tangent; how its solve ended is in `solution.adjoint`.
    """

    in_recipes: ClassVar[bool] = False

    solver: AdjointSolver

    @classmethod
    def of(cls, gradient: Gradient) -> Self:
        """The counterpart of `Implicit` or `Guarded`; raises NotImplementedError for others, which have none."""
        if not isinstance(gradient, Implicit | Guarded) or (isinstance(gradient, Implicit) and gradient.higher_order):
            raise NotImplementedError(
                f"forward-mode derivatives of a fixed point need gradient=Implicit(), found {gradient!r}"
            )
        return cls(gradient.solver)

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:

        def tangent_map(tangent: State) -> State:
            with forward_ad._set_fwd_grad_enabled(True):
                pairs = zip(leaves(state), leaves(tangent), strict=True)
                moved = f(rebuild(state, (forward_ad.make_dual(z, t) for z, t in pairs)))
                return rebuild(state, (_tangent(leaf) for leaf in leaves_as(state, moved)))

        with torch.no_grad(), suspended():
            zero = rebuild(state, (torch.zeros_like(leaf) for leaf in leaves(state)))
            tangent = self.solver.solve(tangent_map, zero)
            moving = Packing.of(state, self.solver.scope).unpack(tangent.value)
        solve.report.advice = _ADVICE
        solve.report.record(tangent, equation="equation of the tangent")
        pairs = zip(leaves(state), leaves(moving), strict=True)
        return Attached(rebuild(state, (forward_ad.make_dual(z, t) for z, t in pairs)))


def suspended() -> AbstractContextManager[object]:
    """A context in which nothing carries a tangent."""
    return forward_ad._set_fwd_grad_enabled(False)


def _tangent(leaf: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(leaf).tangent
    return torch.zeros_like(leaf) if tangent is None else tangent


@torch.no_grad()
def lifted(f: Map, z0: State) -> State:
    """`z0` as functional transforms wrap what `f` closes over, without tangent, by one evaluation."""
    with suspended():
        return rebuild(z0, (z + torch.zeros_like(v) for z, v in zip(leaves(z0), leaves_as(z0, f(z0)), strict=True)))
