"""Learning-rate schedules: each says the rate of a step as a fraction of the peak, after a linear rise to it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from equilibria.ranges import at_least, whole


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Rises linearly to 1; subclasses say what follows.

    Args:
        warmup_steps: steps over which the rate rises from 0 to its peak.
    """

    warmup_steps: int = 100

    def __post_init__(self) -> None:
        whole(0, warmup_steps=self.warmup_steps)

    def factor(self, step: int, steps: int) -> float:
        """The fraction of the peak at a step of `steps`, counted from 0."""
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else self.after_warmup(step, steps)

    @abstractmethod
    def after_warmup(self, step: int, steps: int) -> float:
        """The fraction of the peak at a step that is not part of the rise."""


def _progress(step: int, start: int, steps: int) -> float:
    """How far a step is on the way from step `start` to the last one: 0 to 1."""
    return min(1.0, (step - start) / max(1, steps - 1 - start))


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Stays there."""

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class _Falling(Schedule):
    """Falls to a rate.

    Args:
        final_rate: rate at the last step, as a fraction of the peak.
    """

    final_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, final_rate=self.final_rate)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Falls along half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts)."""

    final_rate: float = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        progress = _progress(step, self.warmup_steps, steps)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """Falls along a line."""

    def after_warmup(self, step: int, steps: int) -> float:
        return 1 - (1 - self.final_rate) * _progress(step, self.warmup_steps, steps)


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """Falls as `1 / √step`, from 1 at the last step of the rise (Vaswani et al. 2017, arXiv:1706.03762)."""

    def after_warmup(self, step: int, steps: int) -> float:
        return math.sqrt(max(1, self.warmup_steps) / (step + 1))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_Falling):
    """Stays at 1 and falls along a line over the last steps (Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024,
    arXiv:2405.18392).

    Args:
        decay_steps: steps over which it falls; the last fifth of all when None.
    """

    decay_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, decay_steps=self.decay_steps)

    def after_warmup(self, step: int, steps: int) -> float:
        decay_steps = self.decay_steps or max(1, steps // 5)
        start = max(self.warmup_steps, steps - decay_steps) - 1
        return 1 - (1 - self.final_rate) * max(0.0, _progress(step, start, steps))


def scheduler(optimizer: Optimizer, schedule: Schedule, steps: int, done: int = 0) -> LambdaLR:
    """A schedule of a run of `steps` on an optimizer, whose groups' rates at construction are the peaks; set to the
    step that follows `done` finished ones."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, lambda step: schedule.factor(step, steps), last_epoch=done - 1)
