"""Learning-rate schedules: the rate of each step as a fraction of the peak, after a linear warm-up."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from equilibria.configuration.training import TrainingRecipe


@dataclass(frozen=True)
class Constant:
    """Rises linearly to 1 over the first `warmup_steps` and stays there; the other schedules fall from there.

    Attributes:
        steps: length of the whole run.
        warmup_steps: steps of the linear rise.
    """

    steps: int
    warmup_steps: int

    def factor(self, step: int) -> float:
        """The fraction of the peak at a step, from 0 to `steps − 1`; beyond, that of the last step."""
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """The fraction of the peak at a step that is not part of the rise."""
        return 1.0

    def progress(self, step: int, start: int) -> float:
        """How far a step is on the way from step `start` to the last one: 0 to 1."""
        return min(1.0, (step - start) / max(1, self.steps - 1 - start))


@dataclass(frozen=True)
class Cosine(Constant):
    """Falls along half a cosine to `final_rate` at the last step (Loshchilov and Hutter 2016, arXiv:1608.03983,
    without restarts)."""

    final_rate: float

    def after_warmup(self, step: int) -> float:
        progress = self.progress(step, self.warmup_steps)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(Constant):
    """Falls along a line to `final_rate` at the last step."""

    final_rate: float

    def after_warmup(self, step: int) -> float:
        return 1 - (1 - self.final_rate) * self.progress(step, self.warmup_steps)


@dataclass(frozen=True)
class InverseSquareRoot(Constant):
    """Falls as `1 / √step`, from 1 at the last step of the rise (Vaswani et al. 2017, arXiv:1706.03762)."""

    def after_warmup(self, step: int) -> float:
        return math.sqrt(max(1, self.warmup_steps) / (step + 1))


@dataclass(frozen=True)
class WarmupStableDecay(Constant):
    """Stays at 1 and falls along a line to `final_rate` over the last `decay_steps` (Hu et al. 2024,
    arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392)."""

    final_rate: float
    decay_steps: int

    def after_warmup(self, step: int) -> float:
        start = max(self.warmup_steps, self.steps - self.decay_steps) - 1
        return 1 - (1 - self.final_rate) * max(0.0, self.progress(step, start))


def build_schedule(recipe: TrainingRecipe) -> Constant:
    """The schedule that a recipe names."""
    steps, warmup_steps = recipe.steps, recipe.warmup_steps
    match recipe.schedule:
        case "cosine":
            return Cosine(steps, warmup_steps, recipe.option("final_rate"))
        case "linear":
            return Linear(steps, warmup_steps, recipe.option("final_rate"))
        case "inverse_square_root":
            return InverseSquareRoot(steps, warmup_steps)
        case "warmup_stable_decay":
            decay_steps = recipe.decay_steps or max(1, steps // 5)
            return WarmupStableDecay(steps, warmup_steps, recipe.option("final_rate"), decay_steps)
        case "constant":
            return Constant(steps, warmup_steps)


def rate_at(recipe: TrainingRecipe, step: int) -> float:
    """The learning rate of a step, counted from 0, for parts of the model without a rate of their own."""
    return recipe.learning_rate * build_schedule(recipe).factor(step)


def scheduler(optimizer: Optimizer, schedule: Constant, done: int = 0) -> LambdaLR:
    """A schedule applied to an optimizer, set to the rate of the step after `done` finished ones.

    Args:
        optimizer: its groups' rates at construction are the peaks.
        schedule: what to multiply them by.
        done: steps already taken by the run that is continued.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, schedule.factor, last_epoch=done - 1)
