"""What takes the steps of training: optimizers, the schedule of their rate, and averages of the weights."""

from equilibria.optimization.averaging import Averaging, Exponential, Uniform
from equilibria.optimization.optimizers import (
    SGD,
    Adam,
    AdamW,
    Muon,
    Optimizer,
    ParameterGroups,
    RAdam,
    Rates,
    ScheduledOptimizers,
    adopted,
    parameter_groups,
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
    "ParameterGroups",
    "RAdam",
    "Rates",
    "Schedule",
    "ScheduledOptimizers",
    "Uniform",
    "WarmupStableDecay",
    "adopted",
    "parameter_groups",
]
