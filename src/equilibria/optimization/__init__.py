"""What takes the steps of training: optimizers, the schedule of their rate, and averages of the weights."""

from equilibria.optimization.averaging import Averaging, Exponential, Uniform
from equilibria.optimization.optimizers import (
    SGD,
    Adam,
    AdamW,
    Muon,
    Optimizer,
    RAdam,
    Rates,
    Roles,
    ScheduledOptimizers,
    adopted,
    roles,
)
from equilibria.optimization.schedules import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Averaging",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSquareRoot",
    "Linear",
    "Muon",
    "Optimizer",
    "RAdam",
    "Rates",
    "Roles",
    "Schedule",
    "ScheduledOptimizers",
    "Uniform",
    "WarmupStableDecay",
    "adopted",
    "roles",
]
