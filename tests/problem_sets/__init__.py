"""The bank of maps: fifty-seven problems and more that others test root finders on, maps that rotate, coupled maps."""

from problem_sets.classical import CLASSICAL
from problem_sets.coupled import COUPLED
from problem_sets.equations import EQUATIONS
from problem_sets.learning import LEARNING
from problem_sets.problem import Problem
from problem_sets.rotating import ROTATING

BANK: tuple[Problem, ...] = (*CLASSICAL, *EQUATIONS, *LEARNING, *ROTATING, *COUPLED)

__all__ = ["BANK", "Problem"]
