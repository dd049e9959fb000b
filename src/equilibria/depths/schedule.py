"""How a depth changes over training: a frozen object that knows the depth of every step from the step's number alone.

Nothing is carried from step to step and nothing is drawn from the generators of training, so a run that was
interrupted goes on with the depths it would have had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Protocol

from equilibria.depths.base import Depth
from equilibria.depths.equilibrium import Equilibrium
from equilibria.depths.unrolled import UnrolledDepth
from equilibria.gradients import Reversible, Unrolled


class Limits(Protocol):
    """How many evaluations a step may use."""

    def at(self, step: int, steps: int) -> int:
        """The limit of step `step` of `steps`, counted from 0."""
        ...


@dataclass(frozen=True)
class RandomLimits:
    """A limit drawn for each step, evenly from `least` to `most`: the model learns to do with any of them.

    Args:
        least: smallest limit, at least 1.
        most: largest.
        seed: of the draws.
    """

    least: int
    most: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"limits need 1 <= least <= most, found least {self.least} and most {self.most}")

    def at(self, step: int, steps: int) -> int:
        """Drawn from the seed and the step."""
        return random.Random(f"limit {self.seed} {step}").randint(self.least, self.most)


@dataclass(frozen=True)
class GrowingLimits:
    """A limit that goes from `first` to `last`, the same amount in every step.

    Args:
        first: limit of the first step, at least 1.
        last: limit of the last step, at least 1.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if min(self.first, self.last) < 1:
            raise ValueError(f"limits are at least 1, found first {self.first} and last {self.last}")

    def at(self, step: int, steps: int) -> int:
        """The nearest whole number."""
        return round(self.first + (self.last - self.first) * _progress(step, steps))


@dataclass(frozen=True)
class JacobianPenalty:
    """A Jacobian penalty in some of the steps, with a weight that may grow (Bai, Koltun and Kolter 2021,
    arXiv:2106.14342).

    Args:
        weight: in the first step.
        last_weight: in the last step, straight from the first; `weight` throughout when None.
        probability: share of the steps that are penalised, `0 < probability ≤ 1`; the weight is not scaled up for it.
        seed: of the draws.
    """

    weight: float
    last_weight: float | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_weights(self.weight, self.last_weight)
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be above 0 and at most 1, found {self.probability}")

    def at(self, step: int, steps: int) -> float:
        """The weight in this step, 0 where it is not penalised."""
        if random.Random(f"jacobian {self.seed} {step}").random() >= self.probability:
            return 0.0
        return _straight(self.weight, self.last_weight, step, steps)


@dataclass(frozen=True)
class ResidualPenalty:
    """A residual penalty whose weight changes over training. Falling, it first makes the map converge and then gives
    way to the loss, below which the penalty of a small residual would otherwise not let it come.

    Args:
        weight: in the first step.
        last_weight: in the last step, straight from the first; `weight` throughout when None.
    """

    weight: float
    last_weight: float | None = None

    def __post_init__(self) -> None:
        _check_weights(self.weight, self.last_weight)

    def at(self, step: int, steps: int) -> float:
        """The weight in this step."""
        return _straight(self.weight, self.last_weight, step, steps)


@dataclass(frozen=True)
class DepthSchedule:
    """The depth of each training step: a shallow unrolled network at first, then an equilibrium, and what varies of it.

    Evaluation is at the depth of the step before it: unrolled during the warm-up, then by the equilibrium's own
    `eval_solver`, which nothing here changes.

    Args:
        depth: the equilibrium.
        warmup_steps: steps at the depth `warmup` before the first at `depth`; the papers' pre-training.
        warmup: of those steps.
        limits: of evaluations after the warm-up: of the training solver, or of the `steps` of an `Unrolled` or
            `Reversible` gradient, which does not solve. As `depth` says when None.
        jacobian: penalty after the warm-up; as `depth` says when None.
        residual: penalty after the warm-up; as `depth` says when None.
    """

    depth: Equilibrium
    warmup_steps: int = 0
    warmup: UnrolledDepth = field(default_factory=lambda: UnrolledDepth(applications=2))
    limits: Limits | None = None
    jacobian: JacobianPenalty | None = None
    residual: ResidualPenalty | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, found {self.warmup_steps}")

    def at(self, step: int, steps: int) -> Depth:
        """The depth of step `step` of `steps`, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup
        step, steps = step - self.warmup_steps, steps - self.warmup_steps
        depth = self.depth
        if self.limits is not None:
            depth = _limited(depth, self.limits.at(step, steps))
        if self.jacobian is not None:
            depth = replace(depth, jacobian_penalty=self.jacobian.at(step, steps))
        if self.residual is not None:
            depth = replace(depth, residual_penalty=self.residual.at(step, steps))
        return depth


def _limited(depth: Equilibrium, limit: int) -> Equilibrium:
    """The depth with so many evaluations in training."""
    if isinstance(depth.gradient, Unrolled | Reversible) and depth.gradient.steps is not None:
        return replace(depth, gradient=replace(depth.gradient, steps=limit))
    return replace(depth, solver=replace(depth.solver, max_evaluations=limit))


def _check_weights(weight: float, last_weight: float | None) -> None:
    if not (weight >= 0 and (last_weight is None or last_weight >= 0)):
        raise ValueError(f"weights are at least 0, found weight {weight} and last_weight {last_weight}")


def _straight(weight: float, last_weight: float | None, step: int, steps: int) -> float:
    """The weight of a step on the line from the first to the last."""
    last = weight if last_weight is None else last_weight
    return weight + (last - weight) * _progress(step, steps)


def _progress(step: int, steps: int) -> float:
    """From 0 in the first step to 1 in the last and beyond it."""
    return min(1.0, step / (steps - 1)) if steps > 1 else 1.0
