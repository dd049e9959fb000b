"""Averages of the weights over the steps: evaluated and kept instead of the weights in training."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equilibria.ranges import at_least, probability, whole


@dataclass(frozen=True, kw_only=True)
class Averaging(ABC):
    """An average, and when it begins."""

    @abstractmethod
    def of(self, model: nn.Module) -> AveragedModel:
        """The average of a model's weights, to be updated after each step that it takes in."""

    @abstractmethod
    def begins(self, done: int, losses: Sequence[float]) -> bool:
        """Whether it begins with the step that has just been taken.

        Args:
            done: steps finished.
            losses: of all validations so far.
        """


@dataclass(frozen=True, kw_only=True)
class Exponential(Averaging):
    """Of all steps, each counting less than the next.

    Args:
        decay: of the weight of earlier steps, per step.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        probability(decay=self.decay)

    def of(self, model: nn.Module) -> AveragedModel:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def begins(self, done: int, losses: Sequence[float]) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Uniform(Averaging):
    """The mean from some step on; without a first step, from when validation stops improving: when a loss is above the
    least of those more than `patience` validations back (Merity, Keskar and Socher 2017, arXiv:1708.02182).

    Args:
        start: step from which on the mean is taken; None lets `patience` decide.
        patience: validations without an improvement after which it begins.
    """

    start: int | None = None
    patience: int = 5

    def __post_init__(self) -> None:
        at_least(0, start=self.start)
        whole(1, patience=self.patience)

    def of(self, model: nn.Module) -> AveragedModel:
        return AveragedModel(model)

    def begins(self, done: int, losses: Sequence[float]) -> bool:
        if self.start is not None:
            return done > self.start
        earlier = losses[: -self.patience - 1]
        return bool(earlier) and losses[-1] > min(earlier)
