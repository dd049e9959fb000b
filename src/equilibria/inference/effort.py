"""How much is computed per token when a trained model is used: less than its recipe says, or more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from equilibria.depths import Adaptive, Depth, Equilibrium, Exit, ExitOnChange, ExitOnResidual, UnrolledDepth
from equilibria.errors import UserError
from equilibria.models import LanguageModel, TokenModel
from equilibria.ranges import above, one_of, whole
from equilibria.solvers import Solver

Leaving = Literal["converged", "unchanged"]

_DIVERGENCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What differs from the recipe's solver for evaluation.

    Attributes:
        tolerance: residual at which a token has converged; None for the solver's. With `leave="unchanged"` it is the
            divergence, in nats, that counts as no change; None for 1e-3.
        max_evaluations: of a token; None for the solver's. A limit drops a solver's draft and fallback, which have
            limits of their own.
        leave: when tokens leave and cost no more: once they have converged, or once their prediction does not change.
            None solves them together, by the solver's own method.
        applications: read the state after exactly so many applications of the cell, from where a solve starts, and do
            not solve: the explicit network with the same weights. None for the model's own depth.

    Raises:
        ValueError: a number is out of its range, or there is no such way to leave.
        UserError: how to solve, and not to.
    """

    tolerance: float | None = None
    max_evaluations: int | None = None
    leave: Leaving | None = None
    applications: int | None = None

    def __post_init__(self) -> None:
        one_of(Leaving, leave=self.leave)
        above(0, tolerance=self.tolerance)
        whole(1, max_evaluations=self.max_evaluations, applications=self.applications)
        solving = (self.tolerance, self.max_evaluations, self.leave)
        if self.applications is not None and solving != (None, None, None):
            raise UserError(
                f"--applications {self.applications} solves nothing, so that --max-evaluations, --tolerance and "
                f"--leave have no effect beside it; leave them out"
            )


def depth_at(model: TokenModel, effort: Effort) -> Depth | None:
    """The depth that a model is called with at that effort; None for its own.

    Raises:
        UserError: it is another than the recipe's, and the model has no solver that can be limited, cannot let its
            tokens leave so, or has no cell that could be applied more or less often.
    """
    if effort == Effort():
        return None
    if effort.applications is not None:
        if not isinstance(model, LanguageModel) or not (model.depth.solves or isinstance(model.depth, UnrolledDepth)):
            raise UserError("--applications: this model has no cell that it applies again and again; leave it out")
        return UnrolledDepth(effort.applications)
    if not isinstance(model, LanguageModel) or not isinstance(model.depth, Equilibrium):
        raise UserError("--max-evaluations, --tolerance and --leave: this model has no solver that can be limited")
    solver = model.depth.eval_solver
    if effort.leave is not None:
        if model.depth.restarts is not None:
            raise UserError(f"--leave {effort.leave}: all tokens are solved together, from several starts; omit it")
        _check_leaving(model, effort.leave, solver)
    if effort.max_evaluations is not None:
        solver = replace(solver, max_evaluations=effort.max_evaluations, draft=None, fallback=None)
    if effort.leave is None:
        return replace(model.depth, eval_solver=replace(solver, tol=effort.tolerance or solver.tol))
    rule: Exit = ExitOnResidual(effort.tolerance or solver.tol)
    if effort.leave == "unchanged":
        rule = ExitOnChange(effort.tolerance or _DIVERGENCE, solver.tol)
    return Adaptive(rule, max_evaluations=solver.max_evaluations)


def _check_leaving(model: LanguageModel, leave: Leaving, solver: Solver) -> None:
    if not model.cell.separable:
        raise UserError(
            f"--leave {leave}: a {type(model.cell).__name__} evaluates all tokens of a segment together; leave it out"
        )
    if solver.criterion != "relative":
        raise UserError(
            f"--leave {leave}: tokens leave by their relative residual, and this model's eval_solver measures the "
            f'{solver.criterion} one; leave it out, or set model.depth.eval_solver.criterion = "relative" in its recipe'
        )
    if leave == "unchanged" and model.coda is not None:
        raise UserError(
            "--leave unchanged: this model has layers after its equilibrium, so that a token's state does not say what "
            "is predicted; take --leave converged"
        )
