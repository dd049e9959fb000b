"""Noise on the iterates of a training solve."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from equilibria.ranges import at_least
from equilibria.solvers import Iterate, Map, Solver, State, Status
from equilibria.solvers.point import Point
from equilibria.solvers.residual import Groups, norm


@dataclass(frozen=True)
class PathNoise:
    """Normal noise on the iterates of training solves, so that the map learns to come back from wherever it is put
    (Huang, Geng and Kolter 2026, arXiv:2605.21488).

    Every iterate that the solver proposes has it but the last of the budget, and none that the gradient evaluates. The
    map is left alone, so what is reported stays true: a residual is that of the state that was evaluated, and a group
    that reached the tolerance is at rest there. But a noisy state's residual is about `std`, or less where the map
    contracts. With a tolerance below it solves use their whole budget, `Switching` takes its phantom gradient and
    `Guarded` its series; and of a gradient that keeps one evaluation the residual penalty sees what is left of the
    noise, which a `penalty_above` of `std` leaves out. A solve held up so has run out of evaluations, not stalled.

    It is drawn from the generators whose state checkpoints hold. A solver's fallback has none.

    Args:
        std: standard deviation, as a share of the root mean square of the group's iterate; 0 draws none.
    """

    std: float = 0.01

    def __post_init__(self) -> None:
        at_least(0, std=self.std)

    def on(self, solver: Solver) -> Solver:
        """The solver with this noise."""
        if not self.std:
            return solver
        options = {option.name: getattr(solver, option.name) for option in fields(Solver)}
        return _Noisy(**options, quiet=solver, noise=self)


@dataclass(frozen=True, kw_only=True)
class _Noisy(Solver):
    """The method of a quiet solver, with noise on what it proposes."""

    quiet: Solver
    noise: PathNoise

    def init(self, z: Tensor, groups: Groups) -> Any:
        return self.quiet.init(z, groups)

    def step(self, memory: Any, point: Point, groups: Groups) -> tuple[Tensor, Any]:
        proposal, memory = self.quiet.step(memory, point, groups)
        if point.map.charged >= self.max_evaluations:
            return proposal, memory
        size = self.noise.std / sqrt(proposal.shape[-1]) * norm(proposal)
        return torch.addcmul(proposal, size.unsqueeze(-1), torch.randn_like(proposal)), memory

    def _solve(self, f: Map, z0: State, propose: bool, iterates: Collection[int]) -> Iterate:
        found = super()._solve(f, z0, propose, iterates)
        return replace(found, status=Status.MAX_EVALUATIONS) if found.status is Status.STALLED else found
