"""The implicit gradient (Bai, Kolter and Koltun 2019, arXiv:1909.01377).

The incoming gradient `g` is turned into the solution of `v = Jᵀ v + g`, by vector-Jacobian products on the graph of
one evaluation. So one evaluation is stored, whatever the solve cost.

Second derivatives need to know how the solution itself moves, and `v` as a differentiable function. Both come from
using the same construction twice. The map is evaluated at a solution that is already attached; the gradient that
autograd sends through that argument is cancelled, as the implicit one contains it, so that to first order nothing
changes; to second order the dependence on the solution arrives there and takes the inner implicit gradient. And `v`
is a solution too: of an affine map whose Jacobian is `Jᵀ`, attached to one evaluation of it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equilibria.gradients.adjoint import (
    Pullback,
    PullbackGradient,
    Tensors,
    TrackedEvaluation,
    attach,
    evaluate,
    solve_adjoint,
)
from equilibria.gradients.base import Attached, Solve
from equilibria.ranges import instance
from equilibria.solvers import GMRES, AdjointReport, AdjointSolver, Map, State
from equilibria.solvers.state import Packing, fitting, leaves_as, rebuild


@dataclass(eq=False)
class AdjointMemory:
    """The last adjoint solution, per sample and in units of the incoming gradient: where the next solve may start.

    It helps where consecutive steps solve for the same samples, as in full-batch training or the fitting of one input.
    A change of shape starts afresh.

    Attributes:
        last: packed `(B, features)`, None before the first backward pass.
    """

    last: Tensor | None = None

    def start(self, like: Tensor) -> Tensor | None:
        """The last adjoint where it fits a state like `like`."""
        last = self.last
        fits = last is not None and (last.shape, last.dtype, last.device) == (like.shape, like.dtype, like.device)
        return last if fits else None


@dataclass(frozen=True)
class Implicit(PullbackGradient):
    """The gradient of the exact solution, right where the solve converged.

    Args:
        solver: solves the adjoint equation, relative to the size of the incoming gradient; any solver or `GMRES`.
            How it ended is in `solution.adjoint` after `backward`.
        higher_order: support second derivatives, at the cost of a second stored evaluation and one more
            vector-Jacobian product. Without it they are an error.
        memory: start each adjoint solve from the one before, which is kept in this object.
    """

    solver: AdjointSolver = field(default_factory=lambda: GMRES(tol=1e-5, max_evaluations=200))
    higher_order: bool = False
    memory: AdjointMemory | None = None

    def __post_init__(self) -> None:
        instance(AdjointSolver, "GMRES()", solver=self.solver)
        instance(AdjointMemory | None, "AdjointMemory()", memory=self.memory)
        if self.higher_order and self.checkpoint:
            raise ValueError("second derivatives keep their evaluations: omit higher_order or checkpoint")

    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        return _Adjoint(self, evaluation, solve.report).pull

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        if not self.higher_order:
            return super().attach(f, state, solve)
        evaluation, tracked = evaluate(f, state)
        attached = attach(evaluation, self.pullback(evaluation, solve), inner=True)
        if any(leaf.requires_grad for leaf in attached):
            with torch.enable_grad():
                value = f(rebuild(state, iter(attached)))
                again = TrackedEvaluation(attached, tuple(leaves_as(state, value)))
            attached = _AttachTwice.apply(_Adjoint(self, again, solve.report), *again.outputs, *again.inputs)
        return Attached(rebuild(state, iter(attached)), tracked)


@dataclass(eq=False)
class _Adjoint:
    """The adjoint equation of one evaluation, solved as the gradient says."""

    gradient: Implicit
    evaluation: TrackedEvaluation
    report: AdjointReport

    def pull(self, incoming: Tensors) -> Tensors:
        """`v = Jᵀ v + g`."""
        memory = self.gradient.memory
        solver, report = self.gradient.solver, self.report
        if memory is None:
            return solve_adjoint(self.evaluation, incoming, solver, report)[0]
        packing = Packing.of(incoming, fitting(incoming, "sample"))
        g = packing.pack(incoming)
        norm = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        norm = torch.where(norm > 0, norm, 1.0)
        last = memory.start(g)
        v, _ = solve_adjoint(self.evaluation, incoming, solver, report, None if last is None else last * norm)
        # Where a loss was not finite, zero is as good a start as any.
        memory.last = torch.nan_to_num(packing.pack(v) / norm, 0.0, 0.0, 0.0)
        return v

    def pull_differentiably(self, incoming: Tensors) -> Tensors:
        """`v` as a function of `g` and of everything the evaluation depends on: attached to one evaluation of its map,
        `v ↦ Jᵀ v + g`. The transpose of its Jacobian is `J`, so this is an adjoint solve in turn."""
        with torch.no_grad():
            solution = self.pull(incoming)

        def equation(v: Tensors) -> Tensors:
            products = self.evaluation.transposed(v, create_graph=True)
            return tuple(product + g for product, g in zip(products, incoming, strict=True))

        evaluation, _ = evaluate(equation, solution)
        report, solver = self.report, self.gradient.solver
        return attach(evaluation, lambda g: solve_adjoint(evaluation, g, solver, report)[0])


class _AttachTwice(torch.autograd.Function):
    """Forward: the solution, given `f(solution)` and the attached solution `f` was applied to. Backward: the adjoint
    `v` for the former, and for the latter `−Jᵀ v`, which cancels what arrives there through `f`."""

    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, *tensors: Tensor) -> Tensors:
        ctx.adjoint = adjoint
        return tuple(leaf.detach().clone() for leaf in adjoint.evaluation.inputs)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        adjoint: _Adjoint = ctx.adjoint
        higher = torch.is_grad_enabled()
        v = adjoint.pull_differentiably(incoming) if higher else adjoint.pull(incoming)
        products = adjoint.evaluation.transposed(v, create_graph=higher)
        return None, *v, *(-product for product in products)
