"""How a depth changes over training: frozen objects that know every step from its number alone.

Nothing is carried from step to step or drawn from the generators of training, so a resumed run has the depths it would
have had.
"""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from equilibria.ranges import at_least, share, whole


class Limits(ABC):
    """How many evaluations a step may use."""

    @abstractmethod
    def at(self, step: int, steps: int, seed: int) -> int:
        """The limit of step `step` of `steps`, counted from 0."""


@dataclass(frozen=True)
class RandomLimits(Limits):
    """A limit drawn for each step, uniformly from `least` to `most`: the model learns to work with any.

    Args:
        least: smallest limit, at least 1.
        most: largest.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"limits need 1 <= least <= most, found least {self.least} and most {self.most}")

    def at(self, step: int, steps: int, seed: int) -> int:
        return random.Random(f"limit {seed} {step}").randint(self.least, self.most)


@dataclass(frozen=True)
class GrowingLimits(Limits):
    """A limit that goes linearly from `first` to `last`.

    Args:
        first: limit of the first step, at least 1.
        last: limit of the last step, at least 1.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        whole(1, first=self.first, last=self.last)

    def at(self, step: int, steps: int, seed: int) -> int:
        return round(self.first + (self.last - self.first) * _progress(step, steps))


@dataclass(frozen=True)
class JacobianPenalty:
    """A Jacobian penalty in some of the steps, with a weight that may grow (Bai, Koltun and Kolter 2021,
    arXiv:2106.14342).

    Args:
        weight: in the first step.
        last_weight: in the last step, linearly from the first; `weight` throughout when None.
        probability: share of the steps that are penalised, `0 < probability ≤ 1`; the weight is not scaled up for it.
    """

    weight: float
    last_weight: float | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight, last_weight=self.last_weight)
        share(probability=self.probability)

    def at(self, step: int, steps: int, seed: int) -> float:
        """The weight in this step, 0 where it is not penalised."""
        if random.Random(f"jacobian {seed} {step}").random() >= self.probability:
            return 0.0
        return _straight(self.weight, self.last_weight, step, steps)


@dataclass(frozen=True)
class ResidualPenalty:
    """A residual penalty whose weight changes over training. Falling, it first makes the map converge and then lets the
    loss fall further than the penalty of small residuals would.

    Args:
        weight: in the first step.
        last_weight: in the last step, linearly from the first; `weight` throughout when None.
    """

    weight: float
    last_weight: float | None = None

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight, last_weight=self.last_weight)

    def at(self, step: int, steps: int) -> float:
        """The weight in this step."""
        return _straight(self.weight, self.last_weight, step, steps)


@dataclass(frozen=True)
class DepthSchedule:
    """How an equilibrium changes over training: a shallow unrolled network at first, then what varies of it.

    Evaluation is at the depth of the step before it: unrolled during the warm-up, then by the equilibrium's
    `eval_solver`, which nothing here changes.

    Args:
        warmup_steps: first steps, in which the cell is applied a fixed number of times; the papers' pre-training.
        warmup_share: the same as a share of all steps, which leaves at least one unless it is 1.
        warmup_applications: that number.
        limits: of evaluations after the warm-up: of the training solver, or of the `steps` of an `Unrolled` or
            `Reversible` gradient, which does not solve. As the depth says when None.
        gradient_steps: evaluations after the warm-up that a `Phantom` gradient differentiates; its own when None.
            Growing, they cost little while a map is still shallow.
        jacobian: penalty after the warm-up; as the depth says when None.
        residual: penalty after the warm-up; as the depth says when None.
    """

    warmup_steps: int = 0
    warmup_share: float | None = None
    warmup_applications: int = 2
    limits: Limits | None = None
    gradient_steps: Limits | None = None
    jacobian: JacobianPenalty | None = None
    residual: ResidualPenalty | None = None

    def __post_init__(self) -> None:
        whole(0, warmup_steps=self.warmup_steps)
        share(warmup_share=self.warmup_share)
        whole(1, warmup_applications=self.warmup_applications)
        if self.warmup_share is not None and self.warmup_steps:
            raise ValueError("warmup_share has no effect beside warmup_steps; drop one of them")

    def warmup(self, steps: int) -> int:
        """How many of the steps are the warm-up."""
        if self.warmup_share is None:
            return self.warmup_steps
        count = round(self.warmup_share * steps)
        return count if self.warmup_share == 1 else min(count, steps - 1)


def _straight(weight: float, last_weight: float | None, step: int, steps: int) -> float:
    """The weight of a step on the line from the first to the last."""
    last = weight if last_weight is None else last_weight
    return weight + (last - weight) * _progress(step, steps)


def _progress(step: int, steps: int) -> float:
    """From 0 in the first step to 1 in the last and beyond it."""
    return min(1.0, step / (steps - 1)) if steps > 1 else 1.0
