"""Learning-rate schedules."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine_factor(step: int, steps: int, warmup_steps: int, final_rate: float) -> float:
    """The learning rate of a step as a fraction of the peak.

    It rises linearly to 1 over the first `warmup_steps`, then falls along half a cosine to `final_rate` at
    the last step (Loshchilov and Hutter, "SGDR", 2017, without restarts).

    Args:
        step: from 0 to `steps - 1`.
        steps: length of the whole run.
        warmup_steps: steps that rise.
        final_rate: fraction of the peak at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return final_rate + (1 - final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(optimizer: Optimizer, steps: int, warmup_steps: int, final_rate: float, done: int = 0) -> LambdaLR:
    """`warmup_cosine_factor` as a scheduler, set to the rate of the step that follows `done` finished ones.

    Args:
        optimizer: its groups' rates at construction are the peaks.
        steps, warmup_steps, final_rate: see `warmup_cosine_factor`.
        done: steps already taken by the run that is continued.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(
        optimizer,
        lambda step: warmup_cosine_factor(step, steps, warmup_steps, final_rate),
        last_epoch=done - 1,
    )
