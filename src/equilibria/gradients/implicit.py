"""The implicit gradient (Bai, Kolter and Koltun 2019, arXiv:1909.01377).

The map is applied once more at the detached solution with gradients on; one autograd function between that value and
the loss turns the incoming gradient `g` into the solution of `v = Jᵀ v + g`, by vector-Jacobian products on the same
graph. So one evaluation is stored, whatever the solve cost, and no parameter has to be listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equilibria.gradients.base import solution_from
from equilibria.solvers import GMRES, AdjointReport, Map, Solution, Solver, State
from equilibria.solvers.state import Packing, leaves, rebuild


@dataclass(frozen=True)
class Implicit:
    """The gradient of the exact solution, right where the solve converged.

    Args:
        solver: solves the adjoint equation, relative to the size of the incoming gradient; any solver or `GMRES`.
            How it ended is in `solution.adjoint` after `backward`.
    """

    solver: Solver | GMRES = field(default_factory=lambda: GMRES(tol=1e-5, max_evaluations=60))

    def attach(self, f: Map, z0: State, solver: Solver) -> Solution:
        """Solve without gradients, then attach the graph of one evaluation."""
        iterate = solver.solve(f, z0)
        packing = Packing.of(z0, solver.scope)
        star = packing.unpack(iterate.value)
        anchored = rebuild(star, (leaf.detach().requires_grad_() for leaf in leaves(star)))
        with torch.enable_grad():
            f_star = f(anchored)
        solution = solution_from(iterate, star)
        solution.tracked = anchored, f_star
        inputs, outputs = tuple(leaves(anchored)), tuple(leaves(f_star))
        if any(leaf.requires_grad for leaf in outputs):
            adjoint = _Adjoint(self.solver, inputs, outputs, solution.adjoint)
            attached = _AttachAdjoint.apply(adjoint, *outputs)
            solution.value = rebuild(star, iter(attached))
        return solution


@dataclass(eq=False)
class _Adjoint:
    """The equation `v = Jᵀ v + g` at the solution `inputs`, where the graph runs from `inputs` to `outputs`."""

    solver: Solver | GMRES
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    report: AdjointReport

    def solve(self, incoming: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Solve for `v`, sample by sample, with `g` scaled to unit norm so that no loss scale matters."""
        packing = Packing.of(tuple(leaf.detach() for leaf in self.inputs), "sample")
        g = packing.pack(incoming)
        norm = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        g = g / torch.where(norm > 0, norm, 1.0)

        def transposed(v: State) -> State:
            with torch.enable_grad():
                product = torch.autograd.grad(
                    self.outputs, self.inputs, tuple(leaves(v)), retain_graph=True, materialize_grads=True
                )
            return packing.unpack(packing.pack(product) + g)

        iterate = self.solver.solve(transposed, packing.unpack(g))
        self.report.status = iterate.status
        self.report.residual = iterate.residual
        self.report.evaluations = iterate.evaluations
        return tuple(leaves(packing.unpack(iterate.value * norm)))


class _AttachAdjoint(torch.autograd.Function):
    """Forward: the solution, given `f(solution)` with its graph. Backward: the adjoint solve."""

    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.adjoint = adjoint
        return tuple(leaf.detach().clone() for leaf in adjoint.inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.adjoint.solve(incoming)
