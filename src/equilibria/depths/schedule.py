"""How a depth changes over training: frozen objects that know all of every step from the step's number alone.

Nothing is carried from step to step and nothing is drawn from the generators of training, so a run that was
interrupted goes on with the depths it would have had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol


class Limits(Protocol):
    """How many evaluations a step may use."""

    def at(self, step: int, steps: int, seed: int) -> int:
        """The limit of step `step` of `steps`, counted from 0."""
        ...


@dataclass(frozen=True)
class RandomLimits:
    """A limit drawn for each step, evenly from `least` to `most`: the model learns to do with any of them.

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
        """Drawn from the seed and the step."""
        return random.Random(f"limit {seed} {step}").randint(self.least, self.most)


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

    def at(self, step: int, steps: int, seed: int) -> int:
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
    """

    weight: float
    last_weight: float | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(self.weight, self.last_weight)
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be above 0 and at most 1, found {self.probability}")

    def at(self, step: int, steps: int, seed: int) -> float:
        """The weight in this step, 0 where it is not penalised."""
        if random.Random(f"jacobian {seed} {step}").random() >= self.probability:
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
    """How an equilibrium changes over training: a shallow unrolled network at first, then what varies of it.

    Evaluation is at the depth of the step before it: unrolled during the warm-up, then by the equilibrium's own
    `eval_solver`, which nothing here changes.

    Args:
        warmup_steps: steps at first in which the cell is applied a fixed number of times instead; the papers'
            pre-training.
        warmup_share: the same as a share of all steps, which leaves at least one unless it is 1.
        warmup_applications: that number.
        limits: of evaluations after the warm-up: of the training solver, or of the `steps` of an `Unrolled` or
            `Reversible` gradient, which does not solve. As the depth says when None.
        jacobian: penalty after the warm-up; as the depth says when None.
        residual: penalty after the warm-up; as the depth says when None.
    """

    warmup_steps: int = 0
    warmup_share: float | None = None
    warmup_applications: int = 2
    limits: Limits | None = None
    jacobian: JacobianPenalty | None = None
    residual: ResidualPenalty | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, found {self.warmup_steps}")
        if self.warmup_share is not None and not 0 < self.warmup_share <= 1:
            raise ValueError(f"warmup_share must be above 0 and at most 1, found {self.warmup_share}")
        if self.warmup_share is not None and self.warmup_steps:
            raise ValueError("warmup_share has no use beside warmup_steps; leave one of them out")
        if self.warmup_applications < 1:
            raise ValueError(f"warmup_applications must be at least 1, found {self.warmup_applications}")

    def warmup(self, steps: int) -> int:
        """How many of so many steps are the warm-up."""
        if self.warmup_share is None:
            return self.warmup_steps
        share = round(self.warmup_share * steps)
        return share if self.warmup_share == 1 else min(share, steps - 1)


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
