"""Forward-mode derivatives of a solution: the tangent is itself a fixed point.

Where `z = f(z, θ)` and `θ` moves with `θ'`, the solution moves with `z' = J z' + ∂f/∂θ θ'`. The right-hand side is what
one forward-mode evaluation of `f` at the solution with tangent `z'` returns, and it is affine in `z'`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from equilibria.gradients.base import Gradient, solution_from
from equilibria.gradients.guarded import Guarded
from equilibria.gradients.implicit import Implicit
from equilibria.solvers import Map, Solution, Solver, State
from equilibria.solvers.state import Packing, leaves, leaves_as, rebuild


def active() -> bool:
    """Whether the caller is taking forward-mode derivatives (`torch.func.jvp` or `torch.autograd.forward_ad`)."""
    return forward_ad._current_level >= 0


def solve_with_tangent(f: Map, z0: State, solver: Solver, gradient: Gradient) -> Solution:
    """Solve `z = f(z)` and give the solution the tangent that follows from those of what `f` closes over.

    The tangent is solved for with the solver of `gradient`, whose report is in `solution.adjoint`.

    The result carries no graph for a backward pass. One evaluation is spent on finding out what `f` returns.

    Raises:
        NotImplementedError: the gradient is neither `Implicit` nor `Guarded`: the others are defined by their backward
            pass.
    """
    if not isinstance(gradient, Implicit | Guarded) or (isinstance(gradient, Implicit) and gradient.higher_order):
        raise NotImplementedError(
            f"forward-mode derivatives of a fixed point need gradient=Implicit(), found {gradient!r}"
        )
    with torch.no_grad():
        lifted = _lift(f, z0)
        with forward_ad._set_fwd_grad_enabled(False):
            iterate = solver.solve(f, lifted)
            star = Packing.of(lifted, solver.scope).unpack(iterate.value)
        solution = solution_from(iterate, star)
        solution.evaluations += 1

        def tangent_map(tangent: State) -> State:
            with forward_ad._set_fwd_grad_enabled(True):
                pairs = zip(leaves(star), leaves(tangent), strict=True)
                moved = f(rebuild(star, (forward_ad.make_dual(z, t) for z, t in pairs)))
                return rebuild(star, (_tangent(leaf) for leaf in leaves_as(star, moved)))

        with forward_ad._set_fwd_grad_enabled(False):
            zero = rebuild(star, (torch.zeros_like(leaf) for leaf in leaves(star)))
            tangent = gradient.solver.solve(tangent_map, zero)
            moving = Packing.of(star, gradient.solver.scope).unpack(tangent.value)
    solution.adjoint.record(tangent)
    pairs = zip(leaves(star), leaves(moving), strict=True)
    solution.value = rebuild(star, (forward_ad.make_dual(z, t) for z, t in pairs))
    return solution


def _tangent(leaf: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(leaf).tangent
    return torch.zeros_like(leaf) if tangent is None else tangent


def _lift(f: Map, z0: State) -> State:
    """`z0` in the wrapping that functional transforms give to what `f` closes over, without tangent."""
    with forward_ad._set_fwd_grad_enabled(False):
        return rebuild(z0, (z + torch.zeros_like(v) for z, v in zip(leaves(z0), leaves_as(z0, f(z0)), strict=True)))
