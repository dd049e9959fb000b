"""What a solve returns: the iterate, how it ended and what it cost. Failure is a value, never silence."""

from __future__ import annotations

import enum
import pickle
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree

from equilibria.solvers.mapped import plain
from equilibria.solvers.residual import Gauge
from equilibria.solvers.state import State, detach


class Status(enum.Enum):
    """How a solve ended; the value of each member is the sentence that explains it."""

    CONVERGED = "every group reached the tolerance"
    MAX_EVALUATIONS = (
        "the budget of evaluations ran out while the residual was still falling; "
        "raise max_evaluations, loosen tol or use a faster solver"
    )
    STALLED = (
        "the residual stopped falling above the tolerance; the map may not contract, its precision may not allow "
        'this tol, or it mixes samples, which scope="all" solves as one (audit_coupling finds out)'
    )
    DIVERGED = "the iterates grow without bound; the map may have no fixed point, or needs damping below 1"
    NON_FINITE = "the map returned NaN or infinity; the solve kept the last finite iterate with the least residual"
    IRREVERSIBLE = (
        "the backward pass could not reconstruct the iterates of a reversible solve; take fewer steps or less damping, "
        "and see that the map computes the same twice"
    )

    def __str__(self) -> str:
        return self.name


class ConvergenceError(RuntimeError):
    """A solve did not converge and `on_failure` is `"raise"`.

    Attributes:
        solution: of a forward solve; None where the adjoint equation of a backward pass was not solved.
    """

    def __init__(self, message: str, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        # Only values cross processes: a graph cannot, and shared memory does not outlive a worker.
        kept = None if self.solution is None else pickle.dumps(self.solution.detached())
        return _unpickled_error, (str(self), kept)


def _unpickled_error(message: str, solution: bytes | None) -> ConvergenceError:
    return ConvergenceError(message, None if solution is None else pickle.loads(solution))


class ConvergenceWarning(UserWarning):
    """A solve did not converge and `on_failure` is `"warn"`."""


@dataclass(kw_only=True)
class Outcome:
    """How a solve ended.

    Attributes:
        value: what is returned.
        status: how the solve ended.
        residual: `‖f(value) − value‖ / ‖f(value)‖` of the worst leaf, or without the denominator by criterion
            `"absolute"`; float32, one number per group.
        converged: boolean, one per group: within the tolerance, and not because the value grew. All are true where
            `status` is `CONVERGED`, and only there.
        tolerance: the tolerance that was asked for.
        evaluations: how often the map was applied.
        trace: residual of the worst group after each evaluation.
        group_evaluations: evaluations after which each group had converged, the total where it had not.
        group_trace: residual of every group after each evaluation, `(evaluations, *groups)`, with
            `Solver.trace_groups`.
        iterates: those asked for and reached, as states like `z0`, by the number of evaluations before them.
    """

    value: Any
    status: Status
    residual: Tensor
    converged: Tensor
    tolerance: float
    evaluations: int
    trace: list[float]
    group_evaluations: Tensor
    group_trace: Tensor | None = None
    iterates: dict[int, State] = field(default_factory=dict)

    def count_probe(self) -> None:
        """Counts an evaluation at the start, before the solve, that found out how the map wraps its values."""
        self.evaluations += 1
        self.trace = [*self.trace[:1], *self.trace]
        if self.group_trace is not None:
            self.group_trace = torch.cat([self.group_trace[:1], self.group_trace])


@dataclass(kw_only=True)
class Iterate(Outcome):
    """The outcome of the solve loop, in packed form: `value` is `(*groups, features)`.

    Attributes:
        proposal: the iterate the method would have evaluated next, where it was asked for; otherwise, and where a
            group converged, the last one evaluated.
        astray: which groups grew without coming nearer to a solution, `(*groups,)`; None where that cannot be.
        gauge: what measured it; None where that is of no further use.
        memory: the method's memory at the end; None where that is of no further use.
        units: those that the memory is in (`Packing.units`).
    """

    proposal: Tensor
    astray: Tensor | None = None
    gauge: Gauge | None = None
    memory: Any = None
    units: Tensor | None = None

    def left_of(self, iterates: Collection[int]) -> list[int]:
        """The numbers of those that a solve from here may reach, counted from here."""
        return [number - self.evaluations for number in iterates if number >= self.evaluations]

    def after(self, draft: Iterate) -> Iterate:
        """This outcome, with the cost of a draft before it."""
        traces = [trace for trace in (draft.group_trace, self.group_trace) if trace is not None]
        return replace(
            self,
            evaluations=draft.evaluations + self.evaluations,
            trace=draft.trace + self.trace,
            group_evaluations=draft.group_evaluations + self.group_evaluations,
            iterates=draft.iterates | {draft.evaluations + number: z for number, z in self.iterates.items()},
            group_trace=torch.cat(traces) if traces else None,
        )


_ADVICE = (
    "this gradient is wrong; give Implicit(GMRES(max_evaluations=...)) more of them, or take Phantom(), whose gradient "
    "is that of what was computed"
)


@dataclass
class AdjointReport:
    """How the backward solve of an implicit gradient ended; empty until `backward` has run.

    Attributes:
        status: of the latest adjoint solve; a failure is not overwritten by a later success.
        residual: of the solve that `status` is about, one per sample. Of `Reversible` instead, one per group,
            `reconstruction` times the share of the gradient that still arrives there: about how far that is off.
        evaluations: vector-Jacobian products of all backward passes through the solution.
        failure: what the first failure says; None where there was none.
        on_failure: called with a message when it fails in the backward pass; with None only `status` tells.
        advice: what such a failure means, and what to do.
        reconstruction: of `Reversible`, the error of the reconstructed start, or of a kept state where that is larger,
            relative to the larger of that state and the solution, per group; None for other gradients.
    """

    status: Status | None = None
    residual: Tensor | None = None
    evaluations: int = 0
    failure: str | None = None
    reconstruction: Tensor | None = None
    on_failure: Callable[[str], None] | None = field(default=None, repr=False)
    advice: str = field(default=_ADVICE, repr=False)

    def record(self, iterate: Iterate, heard: bool = True, equation: str = "adjoint equation") -> None:
        """Take in how the solve of an equation ended, and report a failure where `heard`."""
        failed = self.status not in (None, Status.CONVERGED)
        self.evaluations += iterate.evaluations
        if failed and iterate.status is Status.CONVERGED:
            return
        self.status, self.residual = iterate.status, iterate.residual
        if heard and iterate.status is not Status.CONVERGED:
            message = (
                f"the {equation} was not solved: {iterate.status.name} after {iterate.evaluations} products, "
                f"residual {worst(iterate.residual):.2e} against tol {iterate.tolerance:.2e}; {self.advice}"
            )
            self.failure = self.failure or message
            if self.on_failure is not None:
                self.on_failure(message)


@dataclass(kw_only=True)
class Solution(Outcome):
    """A solution of `z = f(z)` and its statistics.

    Its `value` has the structure of `z0` and is differentiable with respect to everything the map closes over, as are
    its `iterates`. `evaluations` and `trace` include what `Phantom` and `Unrolled` add, tracked evaluations and the one
    that measures them; the evaluation that other gradients attach their graph to is not counted.

    Attributes:
        tracked: the last evaluation that carries a graph, as `(z, f(z))`; None without gradients. A penalty on their
            distance teaches the map to converge.
        adjoint: how the backward solve ended, for gradients that have one.
    """

    tracked: tuple[State, State] | None = None
    adjoint: AdjointReport = field(default_factory=AdjointReport)

    if not TYPE_CHECKING:  # a checker knows what there is

        def __getattr__(self, name: str) -> Any:
            hint = "; it is not a tensor: the state is in .value" if hasattr(Tensor, name) else ""
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)

    def detached(self) -> Solution:
        """The same value and figures, without a graph or what needs one."""
        return replace(
            self,
            value=detach(self.value),
            tracked=None,
            adjoint=replace(self.adjoint, on_failure=None),
            iterates={number: detach(state) for number, state in self.iterates.items()},
        )

    def explain(self) -> str:
        """One line: status, residual, evaluations and what to do."""
        converged = plain(self.converged)
        left, groups = int((~converged).sum()), converged.numel()
        return (
            f"{self.status.name} after {self.evaluations} evaluations: {left} of {groups} groups unconverged, worst "
            f"residual {worst(self.residual):.2e} against tol {self.tolerance:.2e}; {self.status.value}"
        )


def worst(residual: Tensor) -> float:
    """The largest residual as a number (one host synchronisation); 0.0 for no groups."""
    residual = plain(residual)
    return float(residual.max()) if residual.numel() else 0.0


def no_groups_like(value: Tensor) -> Tensor:
    """An integer zero per group of a packed `value`."""
    return torch.zeros(value.shape[:-1], dtype=torch.int32, device=value.device)


@dataclass(frozen=True, eq=False)
class _Rest:
    """The fields of a solution without tensors, among them the adjoint's report that a backward pass fills."""

    kind: type[Solution]
    names: tuple[str, ...]
    fields: dict[str, Any]


_TENSORS = ("value", "residual", "converged", "group_evaluations", "tracked", "group_trace", "iterates")


def _flatten(names: Collection[str], solution: Solution) -> tuple[list[Any], _Rest]:
    fields = vars(solution)
    present = tuple(name for name, part in fields.items() if name in names and part is not None)
    rest = {name: part for name, part in fields.items() if name not in present}
    return [fields[name] for name in present], _Rest(type(solution), present, rest)


def _unflatten(tensors: Iterable[Any], rest: _Rest) -> Solution:
    return rest.kind(**rest.fields, **dict(zip(rest.names, tensors, strict=True)))


def register(kind: type[Solution], *further: str) -> None:
    """Makes the tensors of a kind of solution, and its `further` fields that hold some, known to code that takes
    results apart, such as DDP's static graphs."""
    _pytree.register_pytree_node(kind, partial(_flatten, {*_TENSORS, *further}), _unflatten)


register(Solution)
