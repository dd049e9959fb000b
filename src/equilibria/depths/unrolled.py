"""The depth of an explicit weight-tied network: a fixed number of applications, ordinary backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from equilibria.depths.base import Depth, Reached, check_states_every


@dataclass(frozen=True)
class UnrolledDepth(Depth):
    """Apply the cell a fixed number of times. There is no solution to report.

    Args:
        applications: how often, at least 1.
        checkpoint: keep only the state between applications and recompute the rest in the backward pass.
        states_every: in training, return the state after every so many applications too, for auxiliary losses; the
            last is not among them. None for no states.
    """

    applications: int = 18
    checkpoint: bool = False
    states_every: int | None = None

    def __post_init__(self) -> None:
        if self.applications < 1:
            raise ValueError(f"applications must be at least 1, found {self.applications}")
        check_states_every(self.states_every)

    @property
    def cache_parts(self) -> int:
        """One for each application."""
        return self.applications

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """`f` applied `applications` times to `z0`."""
        argument = z = z0
        states = []
        for done in range(self.applications):
            if done and training and self.states_every and done % self.states_every == 0:
                states.append(z)
            argument = z
            z = recompute(f, z, use_reentrant=False) if self.checkpoint and training else f(z)
        return Reached(z, states=tuple(states), argument=argument)
