"""A state given the graph of one evaluation, and the adjoint equation `v = Jᵀ v + g` on that graph.

The map is applied once more at a detached state with gradients on. One autograd function between that evaluation and
the loss turns the incoming gradient `g` into another, `v`, by a *pullback*; autograd does the rest. These gradients
differ only in their pullback. No parameter has to be listed and no hook is set.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.history import LONG, above, asks, behind, heights, kept_as_it_is
from equilibria.gradients.recomputed import Recomputed, attainable
from equilibria.solvers import AdjointReport, AdjointSolver, Iterate, Map, State, Status, mapped
from equilibria.solvers.state import Packing, fitting, leaves, leaves_as, rebuild

Tensors = tuple[Tensor, ...]
Pullback = Callable[[Tensors], Tensors]
"""From the gradient of a state to the gradient of the evaluation at that state."""


@dataclass(eq=False)
class TrackedEvaluation:
    """One application of a map with gradients on: the graph that runs from `inputs` to `outputs`.

    Attributes:
        height: at least the length of the longest path behind the outputs, None where not counted.
    """

    inputs: Tensors
    outputs: Tensors
    height: int | None = None
    attainable: float = field(init=False)

    def __post_init__(self) -> None:
        self.attainable = attainable(self.inputs)

    @property
    def tracked(self) -> bool:
        """Whether anything the map closes over asks for a gradient; its argument does in any case."""
        return any(asks(node) for node in behind(self.outputs, self.inputs))

    def transposed(self, v: Tensors, create_graph: bool = False) -> Tensors:
        """`Jᵀ v`, one vector-Jacobian product; the graph is kept for the next one."""
        reached = [
            (leaf, part.to(leaf.dtype)) for leaf, part in zip(self.outputs, v, strict=True) if leaf.requires_grad
        ]
        if not reached:
            return tuple(torch.zeros_like(leaf) for leaf in self.inputs)
        outputs, directions = zip(*reached, strict=True)
        return torch.autograd.grad(
            outputs, self.inputs, directions, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )


def evaluate(
    f: Map, state: State, anchored: bool = True, checkpoint: bool = False
) -> tuple[TrackedEvaluation, tuple[State, State]]:
    """Apply `f` at the detached `state` with gradients on: the graph, and `(state, f(state))` in their structure.

    Args:
        f, state: the map and where to apply it.
        anchored: whether products with the Jacobian are wanted, that is whether the state itself is tracked.
        checkpoint: keep the state alone, and evaluate again when a product is first asked for.
    """
    evaluation, tracked = _evaluate(f, state, anchored, checkpoint)
    if not anchored:
        return evaluation, tracked
    nodes, before = heights(evaluation.outputs, evaluation.inputs)
    evaluation.height = nodes + before
    if evaluation.height > LONG and not mapped.active():  # a transform's graph is its own, and short-lived
        evaluation, tracked = _evaluate(f, state, anchored, checkpoint, nodes + before)
        evaluation.height = 2 * nodes + before + 1
    return evaluation, tracked


def _evaluate(
    f: Map, state: State, anchored: bool, checkpoint: bool, history: int = 0
) -> tuple[TrackedEvaluation, tuple[State, State]]:
    """The same, at a state that hangs above a history of that many nodes."""
    asking = mapped.asking if mapped.active() else Tensor.requires_grad_
    here = rebuild(state, (asking(leaf.detach()) if anchored else leaf.detach() for leaf in leaves(state)))
    if history:
        here = rebuild(state, (above(leaf, history) for leaf in leaves(here)))
    if checkpoint:
        value = Recomputed.value(f, here)
    else:
        with torch.enable_grad(), kept_as_it_is() if anchored else nullcontext():
            value = f(here)
    return TrackedEvaluation(tuple(leaves(here)), tuple(leaves_as(here, value))), (here, value)


def attach(evaluation: TrackedEvaluation, pullback: Pullback, inner: bool = False) -> Tensors:
    """The evaluation's inputs, as tensors whose gradient passes through `pullback` to the evaluation's outputs.

    `inner` says that this is part of a construction that is right to second order as a whole. Otherwise a second
    derivative is an error, since it would lack how the point of evaluation moves.
    """
    if not evaluation.tracked:
        return tuple(leaf.detach() for leaf in evaluation.inputs)
    return _Attach.apply(evaluation, pullback, inner, *evaluation.outputs, *evaluation.inputs)


@dataclass(frozen=True)
class PullbackGradient(Gradient):
    """A gradient made of one tracked evaluation and a pullback; the value stays that of the solve.

    Args:
        checkpoint: keep only the state from the forward to the backward pass, which begins by evaluating again: for one
            evaluation more the graph is in memory only while it is walked. Whatever the map reads must still be the
            same then; it is a RuntimeError if the value is another.

    Attributes:
        needs_products: whether the pullback multiplies with the transposed Jacobian.
    """

    checkpoint: bool = field(default=False, kw_only=True)
    needs_products: ClassVar[bool] = True

    @property
    def in_transforms(self) -> bool:
        return not self.checkpoint

    @abstractmethod
    def pullback(self, evaluation: TrackedEvaluation, solve: Solve) -> Pullback:
        """From the gradient of a state to that of the evaluation at it. It lives as long as the graph, so it should
        hold no more of the solve than it needs."""

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        evaluation, tracked = evaluate(f, state, self.needs_products, self.checkpoint)
        attached = attach(evaluation, self.pullback(evaluation, solve))
        return Attached(rebuild(state, iter(attached)), tracked)


def solve_adjoint(
    evaluation: TrackedEvaluation,
    incoming: Tensors,
    solver: AdjointSolver,
    report: AdjointReport,
    start: Tensor | None = None,
) -> tuple[Tensors, Iterate]:
    """Solve `v = Jᵀ v + g` to a relative residual, so that the scale of a loss does not matter.

    Args:
        evaluation: the graph that `J` belongs to; its arithmetic bounds the tolerance from below.
        incoming: `g`.
        solver: how to solve.
        report: where to note how it ended; raises ConvergenceError on failure if it is to.
        start: of the solve, packed by sample; `g` when None.

    Returns:
        `v`, and how the solve ended for the groups of the solver's scope; the whole state is one group where its
        tensors share no first dimension.
    """
    packing = Packing.of(incoming, fitting(incoming, "sample"))
    g = packing.pack(incoming)
    if (scope := fitting(incoming, solver.scope)) != solver.scope:
        solver = solver.scoped(scope)

    def transposed(v: State) -> State:
        return packing.unpack(packing.pack(evaluation.transposed(v)) + g)

    if solver.criterion == "relative" and solver.tol < evaluation.attainable:
        solver = replace(solver, tol=evaluation.attainable)
    with torch.no_grad():
        iterate = solver.solve(transposed, packing.unpack(g if start is None else start))
        solution = Packing.of(incoming, solver.scope).unpack(iterate.value)
    plain = {"residual": mapped.plain(iterate.residual), "converged": mapped.plain(iterate.converged)}
    iterate = replace(iterate, **plain)
    report.record(iterate, heard=iterate.status is not Status.CONVERGED and _at_fault(iterate, mapped.plain(g)))
    return tuple(leaves(solution)), iterate


def _at_fault(iterate: Iterate, g: Tensor) -> bool:
    """Whether a failure is the solve's own; it is not where the loss is NaN or infinite."""
    finite = torch.isfinite(g).all(dim=-1)
    if finite.shape != iterate.residual.shape:  # groups of another scope
        return bool(finite.all())
    return bool((finite & ~(iterate.residual <= iterate.tolerance)).any())


class _Attach(torch.autograd.Function):
    """Forward: the evaluation's inputs, given its outputs and those. Backward: the pullback, to the outputs."""

    @staticmethod
    def forward(evaluation: TrackedEvaluation, pullback: Pullback, inner: bool, *tensors: Tensor) -> Tensors:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(leaf.detach().clone() for leaf in tensors[len(tensors) // 2 :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.evaluation, ctx.pullback, ctx.inner, *_ = inputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *operands: Any) -> tuple[Tensors, tuple[int | None, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Below the transform that takes the gradient, only the mapped value is wanted, not its graph."""
        evaluation, _, inner, *tensors = operands
        return _Attach.apply(evaluation, _refuse, inner, *tensors), in_dims[3 + len(tensors) // 2 :]

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        outputs: Tensors = ctx.evaluation.outputs
        if ctx.inner and not any(bool(part.any()) for part in incoming):
            # To first order nothing arrives here, see `Implicit`: skip the solve and the pass through the map.
            return (None,) * (3 + 2 * len(outputs))
        mapped.check_legacy(incoming)
        with torch.no_grad():
            result = ctx.pullback(incoming)
        if torch.is_grad_enabled() and not ctx.inner:
            result = _Once.apply(len(result), *result, *outputs, *incoming)
        return None, None, None, *result, *(None for _ in outputs)


def _refuse(incoming: Tensors) -> Tensors:
    raise RuntimeError(
        "a backward pass reached a fixed point through torch.func.vmap around torch.func.grad; "
        "take the outer derivative by torch.func.grad around torch.func.vmap"
    )


class _Once(torch.autograd.Function):
    """The first `count` tensors; differentiating them is an error, as the derivative would be incomplete."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> Tensors:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(leaf.clone() for leaf in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Nothing is needed to refuse."""

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[int | None, ...], count: int, *tensors: Tensor
    ) -> tuple[Tensors, tuple[int | None, ...]]:
        return _Once.apply(count, *tensors), in_dims[1 : 1 + count]

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "a gradient through a fixed point was differentiated again, and would be incomplete; "
            "pass gradient=Implicit(higher_order=True), which supports second (and no third) derivatives"
        )
