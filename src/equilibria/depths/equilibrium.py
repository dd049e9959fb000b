"""The depth of a deep equilibrium model: a fixed point."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from equilibria.cells import Cell
from equilibria.depths.base import Continued, Depth, Reached
from equilibria.depths.explicit import UnrolledDepth
from equilibria.depths.noise import PathNoise
from equilibria.depths.schedule import DepthSchedule
from equilibria.depths.starts import RandomStart, Restarts
from equilibria.deq import fixed_point
from equilibria.deq.solving import checked_gradient, checked_solver
from equilibria.gradients import Gradient, Implicit, Phantom, ReuseInverse, Reversible, Unrolled
from equilibria.penalties import jacobian_penalty, residual_penalty
from equilibria.ranges import at_least, whole
from equilibria.solvers import Broyden, Picard, Solution, Solver

RESIDUAL_PENALTY = 0.1
"""The default weight of the residual penalty."""


@dataclass(frozen=True)
class Equilibrium(Depth):
    """Solve for the fixed point. What did not converge is reported in the solution, not raised.

    The default solvers are causal: their scope is `"prefix"`.

    Args:
        solver: how to solve in training.
        gradient: how to differentiate in training.
        eval_solver: how to solve in evaluation. Its value is returned with gradients on or off; they are the implicit
            ones there, as those that go on from a solution return another.
        residual_penalty: weight, in the training loss, of the mean residual at the tracked evaluation. It keeps the
            map converging where learning alone would not.
        penalty_above: only a residual beyond this is penalised. The implicit gradient needs it: there the penalty sees
            one evaluation and, without a limit, contracts the map to nothing.
        jacobian_penalty: weight, in the training loss, of `‖J‖²_F` per element of the state, estimated at the solution
            (Bai, Koltun and Kolter 2021, arXiv:2106.14342). It costs an evaluation and two passes back through it.
        states_every: in training, return the state after every so many evaluations too, as far as the solver got, for
            auxiliary losses; each costs as much as the gradient. None for no states.
        start: where training solves start; where those of evaluation do when None.
        noise: on the iterates of training solves; none when None.
        rounds: solves of a training step, one after the other on the same batch. Each begins where the one before it
            ended, with states cut from the graph, and has a gradient, a loss and penalties of its own, whose mean over
            the rounds is what the step takes; memory is that of one. It is known as deep supervision (Wang et al. 2025,
            arXiv:2506.21734; Jolicoeur-Martineau 2025, arXiv:2510.04871). The embedding is recomputed and dropout
            redrawn in each.
        restarts: further starts in evaluation; none when None. A model with them decodes without a cache.
        schedule: what changes over training; nothing when None.
    """

    solver: Solver = field(default_factory=lambda: Picard(tol=1e-2, max_evaluations=4, scope="prefix"))
    gradient: Gradient = field(default_factory=Phantom)
    eval_solver: Solver = field(default_factory=lambda: Picard(tol=1e-3, max_evaluations=64, scope="prefix"))
    residual_penalty: float = RESIDUAL_PENALTY
    penalty_above: float = 0.0
    jacobian_penalty: float = 0.0
    states_every: int | None = None
    start: RandomStart | None = None
    noise: PathNoise | None = None
    rounds: int = 1
    restarts: Restarts | None = None
    schedule: DepthSchedule | None = None
    solves = True

    def __post_init__(self) -> None:
        for role in ("solver", "eval_solver"):
            checked_solver(getattr(self, role), role=role)
        checked_gradient(self.gradient)
        at_least(0, residual_penalty=self.residual_penalty, penalty_above=self.penalty_above)
        at_least(0, jacobian_penalty=self.jacobian_penalty)
        whole(1, states_every=self.states_every, rounds=self.rounds)
        if self.restarts is not None:
            self.restarts.check(self.eval_solver)
        name = type(self.gradient).__name__
        if self.noise is not None and self.gradient.begins_at == "start":
            raise ValueError(f"noise has no effect beside {name}, which differentiates every evaluation; drop it")
        varied = self.schedule is not None and self.schedule.limits is not None
        if self.noise is not None and self.solver.most_evaluations == 1 and not varied:
            raise ValueError("noise has no effect on a solve of one evaluation; raise max_evaluations, or drop noise")
        if self.noise is not None and isinstance(self.gradient, ReuseInverse):
            raise ValueError(f"{name} uses the pairs of a solve without noise; drop noise, or take another gradient")
        if isinstance(self.gradient, ReuseInverse) and not isinstance(self.solver, Broyden):
            name = type(self.solver).__name__
            raise ValueError(f"the gradient ReuseInverse uses the pairs of a Broyden solver; found a {name}")
        if self.schedule is not None:
            if self.schedule.warmup_share == 1 and (idle := self._idle_without_solves()):
                raise ValueError(
                    f"{', '.join(idle)}: no effect with schedule.warmup_share = 1, where training never solves; drop "
                    f"them, or lower the share"
                )
            if self.schedule.gradient_steps is not None:
                if not isinstance(self.gradient, Phantom):
                    raise ValueError(f"schedule.gradient_steps is of the gradient Phantom, found {name}; drop it")
                if self.gradient.steps != Phantom.steps:
                    raise ValueError("gradient.steps has no effect beside schedule.gradient_steps; drop one of them")
            for name, usual in (("residual", RESIDUAL_PENALTY), ("jacobian", 0.0)):
                if getattr(self.schedule, name) is not None and getattr(self, f"{name}_penalty") != usual:
                    raise ValueError(f"{name}_penalty has no effect beside schedule.{name}; drop one of them")

    def at(self, step: int, steps: int, seed: int) -> Depth:
        schedule = self.schedule
        if schedule is None:
            return self
        depth, warmup = self.steady(), schedule.warmup(steps)
        if step < warmup:
            return UnrolledDepth(schedule.warmup_applications)
        step, steps = step - warmup, steps - warmup
        if schedule.limits is not None:
            depth = depth._limited(schedule.limits.at(step, steps, seed))
        if schedule.gradient_steps is not None and isinstance(depth.gradient, Phantom):
            # A seed that no run has, so that limits are not drawn alike.
            count = schedule.gradient_steps.at(step, steps, -1 - seed)
            depth = replace(depth, gradient=replace(depth.gradient, steps=count))
        if schedule.jacobian is not None:
            depth = replace(depth, jacobian_penalty=schedule.jacobian.at(step, steps, seed))
        if schedule.residual is not None:
            depth = replace(depth, residual_penalty=schedule.residual.at(step, steps))
        return depth

    def obstacle(self, cell: Cell) -> str | None:
        """A solver that goes from left to right, where tokens have no direction: what a set is would depend on their
        order."""
        roles = [role for role in ("solver", "eval_solver") if getattr(self, role).scope == "prefix"]
        if cell.causal or not roles:
            return None
        keys = " and ".join(f"depth.{role}.scope" for role in roles)
        return (
            f'{keys} = "prefix": that solves from left to right, and tokens that all see each other (causal = false) '
            f'have no direction; give "sample"'
        )

    def leak(self, cell: Cell) -> str | None:
        """Solvers that go on, or mix iterates, by the residual of whole samples."""
        roles = [role for role in ("solver", "eval_solver") if getattr(self, role).scope in ("sample", "all")]
        if not cell.causal or not roles:
            return None
        keys = ", ".join(f'depth.{role}.scope = "{getattr(self, role).scope}"' for role in roles)
        return f'{keys}: when a token stops depends on later ones; scopes "prefix" and "token" look at none'

    def stricter(self, share: float) -> Self:
        """With a share of the tolerance in evaluation."""
        return replace(self, eval_solver=replace(self.eval_solver, tol=share * self.eval_solver.tol))

    @property
    def cache_parts(self) -> int | None:
        return 1 if self.restarts is None else None

    def continued(self, states_BLD: Tensor) -> Depth:
        return Continued(replace(self, start=None), states_BLD)

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        if not training:
            solution = self._evaluated(f, z0)
            return Reached(solution.value, solution)
        learning = torch.is_grad_enabled()
        z0 = z0 if self.start is None else self.start.around(z0)
        solver = self.solver if self.noise is None else self.noise.on(self.solver)
        iterates = self._iterates() if learning else range(0)
        solution = fixed_point(f, z0, solver, self.gradient, on_failure="ignore", iterates=iterates)
        states = tuple(solution.iterates[number] for number in sorted(solution.iterates))
        return Reached(solution.value, solution, self._penalty(f, solution) if learning else None, states)

    def _evaluated(self, f: Callable[[Tensor], Tensor], z0: Tensor) -> Solution:
        gradient = self.gradient if isinstance(self.gradient, Implicit) else Implicit()
        if self.restarts is not None:
            return self.restarts.solve(f, z0, self.eval_solver, gradient)
        return fixed_point(f, z0, self.eval_solver, gradient, on_failure="ignore")

    def warmup(self, steps: int) -> int:
        return 0 if self.schedule is None else self.schedule.warmup(steps)

    def steady(self) -> Self:
        return replace(self, schedule=None)

    def _idle_without_solves(self) -> list[str]:
        """The options given that change training solves, beyond their solver, gradient and penalties."""
        given = {
            "start": self.start,
            "noise": self.noise,
            "rounds": self.rounds if self.rounds > 1 else None,
            "states_every": self.states_every,
        }
        varied = ("limits", "gradient_steps", "jacobian", "residual")
        given |= {f"schedule.{name}": getattr(self.schedule, name) for name in varied}
        return [name for name, value in given.items() if value is not None]

    def _limited(self, limit: int) -> Self:
        """With at most `limit` evaluations in training."""
        if isinstance(self.gradient, Unrolled | Reversible) and self.gradient.steps is not None:
            return replace(self, gradient=replace(self.gradient, steps=limit))
        return replace(self, solver=replace(self.solver, max_evaluations=limit))

    def _iterates(self) -> range:
        if self.states_every is None:
            return range(0)
        if isinstance(self.gradient, Unrolled | Reversible) and self.gradient.steps is not None:
            most = self.gradient.steps
        else:
            most = self.solver.most_evaluations
        return range(self.states_every, most, self.states_every)

    def _penalty(self, f: Callable[[Tensor], Tensor], solution: Solution) -> Tensor | None:
        penalties = []
        if self.residual_penalty and solution.tracked is not None:
            penalties.append(self.residual_penalty * residual_penalty(solution, self.penalty_above))
        if self.jacobian_penalty:
            # Fused attention has no second derivative; only here, so that solves keep the fast backend.
            with sdpa_kernel(SDPBackend.MATH):
                penalties.append(self.jacobian_penalty * jacobian_penalty(f, solution.value))
        return torch.stack(penalties).sum() if penalties else None
