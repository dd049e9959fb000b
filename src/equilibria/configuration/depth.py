"""The `[model.depth]` section of a recipe: how often the cell is applied, how that is solved, differentiated and
changed over training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from cyclopts import Parameter

from equilibria.configuration.options import Options, foreign_options, is_given, missing_options
from equilibria.configuration.values import MOST_LAYERS, Count, Natural, NonNegative, Positive, Ratio
from equilibria.solvers.newton_krylov import Products
from equilibria.solvers.residual import Criterion

SOLVER_OPTIONS: Options = {
    "picard": ("damping",),
    "anderson": ("history", "ridge", "damping"),
    "broyden": ("history", "halvings"),
    "newton_krylov": ("inner", "forcing", "products"),
}
"""Options that each solver takes beyond those that all take."""

ADJOINT_OPTIONS: Options = {
    "gmres": ("tol", "max_evaluations", "restart"),
    "picard": ("tol", "max_evaluations", "damping"),
    "anderson": ("tol", "max_evaluations", "history", "damping"),
    "broyden": ("tol", "max_evaluations", "history"),
}
"""Options that each solver of the adjoint equation takes."""

_ADJOINT = ("tol", "max_evaluations", "adjoint", "restart", "history", "damping")

GRADIENT_OPTIONS: Options = {
    "implicit": _ADJOINT,
    "phantom": ("steps", "damping", "checkpoint"),
    "unrolled": ("steps", "checkpoint"),
    "jacobian_free": (),
    "neumann": ("terms",),
    "reuse_inverse": _ADJOINT,
    "reversible": ("steps", "damping", "keep_every", "bound"),
    "switching": (*_ADJOINT, "steps", "checkpoint", "share"),
}
"""Options that each gradient takes."""

DEPTH_OPTIONS: Options = {
    "equilibrium": ("residual_penalty", "penalty_above", "jacobian_penalty", "states_every"),
    "unrolled": ("checkpoint", "states_every", "residual_penalty", "penalty_above"),
    "stack": ("tied", "shared_biases"),
    "halting": ("max_steps", "threshold", "ponder_weight"),
}
"""Options that each depth takes. The unrolled one takes the penalty too, and leaves it aside, as it does the solvers:
a recipe becomes that of its explicit twin by one word."""

LIMITS_OPTIONS: Options = {
    "random": ("least_evaluations", "most_evaluations"),
    "growing": ("first_evaluations", "last_evaluations"),
}
"""Options that each kind of limits takes, and needs."""


@dataclass(frozen=True, kw_only=True)
class SolverRecipe:
    """How the fixed point is found."""

    method: Literal["picard", "anderson", "broyden", "newton_krylov"]
    """Plain iteration, one of two accelerations of it, or Newton's method."""
    tol: Positive
    """Residual at which a group has converged."""
    max_evaluations: Count
    """Evaluations of the cell, at most."""
    scope: Literal["sample", "token", "prefix"] = "prefix"
    """What is solved on its own: a sequence (not causal), a token, or a token with those before it."""
    criterion: Criterion | None = None
    """What a residual is; left out: relative."""
    draft: bool | None = None
    """Solve in bfloat16 first and start from there."""
    fallback_damping: Ratio | None = None
    """Solve again where the solve did not converge, by picard with this share of the new value in a step and twice as
    many evaluations; left out: leave it at that."""
    check_every: Count | None = None
    """Evaluations between looks whether the solve is done, each of which waits for the device; left out: 1."""
    damping: Ratio | None = None
    """Share of the new value in a step; for picard and anderson."""
    history: Count | None = None
    """Earlier iterates kept; for anderson and broyden."""
    ridge: NonNegative | None = None
    """Regularisation relative to the scale of the Gram matrix; for anderson."""
    halvings: Natural | None = None
    """How often a step that does not help is halved; for broyden; left out: 0."""
    inner: Count | None = None
    """Jacobian-vector products of a step, at most; for newton_krylov."""
    forcing: Ratio | None = None
    """Residual of a step's linear equation relative to that of the map; for newton_krylov."""
    products: Products | None = None
    """Exact Jacobian-vector products, or differences of the map; for newton_krylov; left out: exact where the
    map has them, and differences where it has none, as fused attention."""


@dataclass(frozen=True, kw_only=True)
class GradientRecipe:
    """How the backward pass is taken."""

    method: Literal[
        "implicit", "phantom", "unrolled", "jacobian_free", "neumann", "reuse_inverse", "reversible", "switching"
    ]
    """Solve the adjoint equation, differentiate a few steps from the solution or all of a few, approximate, go back
    through a reversible iteration, or take the first where the solve converged and the second where not."""
    steps: Count | None = None
    """Differentiated steps; for phantom, unrolled, switching and reversible (left out: the solver's max_evaluations, or
    fewer where all converge before)."""
    damping: Ratio | None = None
    """Share of the new value in a step; for phantom, reversible (below 1; left out: 0.8), and for picard and anderson
    as the adjoint solver."""
    keep_every: Count | None = None
    """Evaluations between states that are kept to go back from; for reversible; left out: the last ones alone."""
    bound: Positive | None = None
    """Error of the gradient by lost digits beyond which a backward pass counts as failed; for reversible; left out:
    1e-3."""
    checkpoint: bool | None = None
    """Recompute each step in the backward pass instead of storing it; for phantom, unrolled and switching."""
    share: Ratio | None = None
    """Share of the tokens that must have converged for the implicit gradient; for switching; left out: 0.99."""
    terms: Count | None = None
    """Terms of the series; for neumann."""
    adjoint: Literal["gmres", "picard", "anderson", "broyden"] | None = None
    """Adjoint solver; for implicit (left out: gmres), for switching (left out: picard) and, as a refinement, for
    reuse_inverse (left out: none)."""
    tol: Positive | None = None
    """Residual at which the adjoint solve has converged; for implicit, switching and reuse_inverse."""
    max_evaluations: Count | None = None
    """Vector-Jacobian products in the adjoint solve, at most; for implicit, switching and reuse_inverse."""
    restart: Count | None = None
    """Basis vectors kept before a restart; for gmres as the adjoint solver."""
    history: Count | None = None
    """Earlier iterates kept; for anderson and broyden as the adjoint solver."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """How an equilibrium changes over training; nothing does when all is left out."""

    warmup_steps: Natural | None = None
    """Steps at first in which the cell is applied a fixed number of times instead; left out: none."""
    warmup_share: Ratio | None = None
    """The same as a share of all steps, instead of warmup_steps."""
    warmup_applications: Count | None = None
    """That number; left out: 2."""
    limits: Literal["random", "growing"] | None = None
    """Evaluations of a training step: drawn for each, or growing evenly; left out: as the solver says."""
    least_evaluations: Count | None = None
    """Least of random limits."""
    most_evaluations: Count | None = None
    """Most of random limits."""
    first_evaluations: Count | None = None
    """Growing limits begin here."""
    last_evaluations: Count | None = None
    """Growing limits end here."""
    residual_weight: NonNegative | None = None
    """Residual penalty in the first step after the warm-up; left out: residual_penalty throughout."""
    residual_last_weight: NonNegative | None = None
    """And in the last, in a straight line; left out: the same."""
    jacobian_weight: NonNegative | None = None
    """Jacobian penalty in the first step; left out: jacobian_penalty throughout."""
    jacobian_last_weight: NonNegative | None = None
    """And in the last, in a straight line; left out: the same."""
    jacobian_probability: Ratio | None = None
    """Share of the steps that are penalised; left out: 1."""


@dataclass(frozen=True, kw_only=True)
class DepthRecipe:
    """How often the cell is applied."""

    kind: Literal["equilibrium", "unrolled", "stack", "halting"] = "equilibrium"
    """Solve for the fixed point, apply the cell a fixed number of times, stack layers, or halt token by token."""
    applications: Count = 18
    """Applications of the cell, for kind "unrolled"; layers, for kind "stack"."""
    tied: bool | None = None
    """Whether the layers are one and the same, each with its own memory; for stack."""
    shared_biases: bool | None = None
    """Whether the layers share the two biases of relative attention; for stack; left out: no."""
    checkpoint: bool | None = None
    """Recompute each application in the backward pass instead of storing it; for unrolled."""
    states_every: Count | None = None
    """Evaluations between states with a loss of their own (model.auxiliary_weight); for equilibrium and unrolled."""
    max_steps: Count | None = None
    """Applications at most; for halting; left out: 8."""
    threshold: Ratio | None = None
    """Sum of halting probabilities at which a token halts; for halting; left out: 0.99."""
    ponder_weight: NonNegative | None = None
    """Weight, in the training loss, of the steps that are taken; for halting; left out: 1e-3."""
    residual_penalty: NonNegative | None = None
    """Weight, in the training loss, of the residual that the last differentiated step leaves; left out: 2.5."""
    penalty_above: NonNegative | None = None
    """Only what a residual has beyond this is penalised; left out: 0."""
    jacobian_penalty: NonNegative | None = None
    """Weight, in the training loss, of the squared norm of the Jacobian; for equilibrium; left out: 0."""
    solver: Annotated[SolverRecipe, Parameter(group="model.depth.solver")] = field(
        default_factory=lambda: SolverRecipe(method="picard", tol=1e-2, max_evaluations=4)
    )
    """The solver in training; this and the next three sections are for kind "equilibrium"."""
    eval_solver: Annotated[SolverRecipe, Parameter(group="model.depth.eval_solver")] = field(
        default_factory=lambda: SolverRecipe(method="picard", tol=5e-3, max_evaluations=10)
    )
    """The solver in evaluation and generation."""
    gradient: Annotated[GradientRecipe, Parameter(group="model.depth.gradient")] = field(
        default_factory=lambda: GradientRecipe(method="phantom", steps=7)
    )
    """The gradient of the solution."""
    schedule: Annotated[ScheduleRecipe, Parameter(group="model.depth.schedule")] = field(default_factory=ScheduleRecipe)
    """What changes over training."""


def depth_problems(depth: DepthRecipe) -> Iterator[str]:
    """What is wrong with the section; each line begins with a key."""
    key = "model.depth"
    yield from foreign_options(key, depth, "kind", DEPTH_OPTIONS)
    if depth.kind == "stack" and depth.applications > MOST_LAYERS:
        yield f"{key}.applications = {depth.applications}: expected {MOST_LAYERS} or fewer layers of a stack"
    for name in ("solver", "eval_solver"):
        yield from _solver_problems(f"{key}.{name}", getattr(depth, name))
    yield from _gradient_problems(f"{key}.gradient", depth.gradient, depth.solver)
    yield from _schedule_problems(f"{key}.schedule", depth)


def _solver_problems(key: str, solver: SolverRecipe) -> Iterator[str]:
    yield from foreign_options(key, solver, "method", SOLVER_OPTIONS)
    if solver.method == "newton_krylov" and solver.scope != "sample":
        yield f'{key}.scope = "{solver.scope}": expected "sample", the only one that method "newton_krylov" has'


def _gradient_problems(key: str, gradient: GradientRecipe, solver: SolverRecipe) -> Iterator[str]:
    yield from foreign_options(key, gradient, "method", GRADIENT_OPTIONS)
    if gradient.method == "reuse_inverse" and solver.method != "broyden":
        expected = 'expected "broyden", whose pairs the gradient "reuse_inverse" uses'
        yield f'model.depth.solver.method = "{solver.method}": {expected}'
    if gradient.method == "reversible" and gradient.damping == 1:
        yield f"{key}.damping = 1: expected less, as a whole step of a reversible iteration has no way back"
    if "adjoint" in GRADIENT_OPTIONS[gradient.method]:
        adjoint = gradient.adjoint or default_adjoint(gradient)
        for name in _ADJOINT:
            if name != "adjoint" and name not in ADJOINT_OPTIONS[adjoint] and is_given(getattr(gradient, name)):
                taken = ", ".join(ADJOINT_OPTIONS[adjoint])
                yield f'{key}.{name}: adjoint "{adjoint}" has no such option; it takes {taken}'


def default_adjoint(gradient: GradientRecipe) -> Literal["gmres", "picard"]:
    """The adjoint solver where none is named."""
    return "picard" if gradient.method == "switching" else "gmres"


def _schedule_problems(key: str, depth: DepthRecipe) -> Iterator[str]:
    schedule = depth.schedule
    for entry in fields(schedule):
        if depth.kind != "equilibrium" and is_given(getattr(schedule, entry.name)):
            yield f'{key}.{entry.name} is for model.depth.kind = "equilibrium", which is "{depth.kind}" here'
    if schedule.limits is None:
        for name in (name for names in LIMITS_OPTIONS.values() for name in names):
            if is_given(getattr(schedule, name)):
                yield f"{key}.{name} has no use without {key}.limits"
    else:
        yield from foreign_options(key, schedule, "limits", LIMITS_OPTIONS)
        yield from missing_options(key, schedule, "limits", LIMITS_OPTIONS)
    warmups = [name for name in ("warmup_steps", "warmup_share") if is_given(getattr(schedule, name))]
    if len(warmups) > 1:
        yield f"{key}.warmup_share has no use beside {key}.warmup_steps; leave one of them out"
    if is_given(schedule.warmup_applications) and not warmups:
        yield f"{key}.warmup_applications has no use without {key}.warmup_share or {key}.warmup_steps"
    for name, needed in (
        ("residual_last_weight", "residual_weight"),
        ("jacobian_last_weight", "jacobian_weight"),
        ("jacobian_probability", "jacobian_weight"),
    ):
        if is_given(getattr(schedule, name)) and not is_given(getattr(schedule, needed)):
            yield f"{key}.{name} has no use without {key}.{needed}"
    for kind in ("residual", "jacobian"):
        weight, constant = getattr(schedule, f"{kind}_weight"), getattr(depth, f"{kind}_penalty")
        if weight is not None and constant is not None:
            yield f"{key}.{kind}_weight has no use beside model.depth.{kind}_penalty; leave one of them out"
