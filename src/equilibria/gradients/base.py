"""What all gradients share: each is given a solve and returns states with a graph."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from equilibria.solvers import AdjointReport, Iterate, Map, Solver, State


@dataclass(frozen=True, eq=False)
class Solve:
    """The solve that a gradient belongs to; its solver also measures states after it.

    Attributes:
        wanted: numbers of the iterates wanted beside the solution.
        iterate: how it ended; None for a gradient that begins at the start.
        proposal: the state the solver would have evaluated next, for a gradient that begins there; None for an iterate
            on the way.
        report: where a backward pass notes how it ended.
    """

    solver: Solver
    wanted: Collection[int] = ()
    iterate: Iterate | None = None
    proposal: State | None = None
    report: AdjointReport = field(default_factory=AdjointReport)


@dataclass(eq=False)
class Attached:
    """A state with its graph.

    Attributes:
        value: the state.
        tracked: the last evaluation that carries a graph, as `(z, f(z))`; None for none.
        steps: evaluations from where the gradient began to `value`; unless 0, the residual is measured again.
        first: the first of these evaluations, `(z, f(z))`.
        f_value: `f(value)` where it is known, for the residual.
        iterates: the wanted ones on the way, of a gradient that begins at the start.
    """

    value: State
    tracked: tuple[State, State] | None = None
    steps: int = 0
    first: tuple[State, State] | None = None
    f_value: State | None = None
    iterates: dict[int, State] = field(default_factory=dict)


class Gradient(ABC):
    """A way of taking the backward pass; a frozen object without state of its own.

    `fixed_point` solves, then calls `attach` for the solution and for every wanted iterate of the solve.

    Attributes:
        begins_at: the `"solution"`; the `"proposal"`, which the solver makes after its last evaluation; or the
            `"start"`, for a gradient that iterates by itself: nothing is solved before.
        in_recipes: whether a recipe may name it.
    """

    in_recipes: ClassVar[bool] = True
    begins_at: ClassVar[Literal["start", "solution", "proposal"]] = "solution"

    @property
    def in_transforms(self) -> bool:
        """Whether it works inside transforms of `torch.func`."""
        return True

    @abstractmethod
    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        """Give a state its graph: the solution or an iterate of `solve`, or `z0` for a gradient that begins at the
        start."""


@dataclass(frozen=True)
class NoGradient(Gradient):
    """States as they are, where gradients are off."""

    in_recipes: ClassVar[bool] = False

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        return Attached(state)
