"""A start in low precision: early evaluations need no more digits than the residual they work on.

Where matrix products are several times faster in bfloat16, most of a solve can be had at that price; the evaluations
that count, and every residual that is returned, stay in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from equilibria.solvers.point import Map
from equilibria.solvers.state import State, leaves


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Solve under `torch.autocast` first, and start from there. States of float64 are not lowered by autocast.

    Every group is drafted within its own tolerance and the draft has a budget of its own, so that scopes stay as
    causal and as independent of the batch as without it.

    Args:
        dtype: what autocast computes in.
        tol: relative residual at which a group's draft is done; the rounding of `dtype` has to allow it.
        max_evaluations: of the draft, on top of the solver's own.
    """

    dtype: torch.dtype = torch.bfloat16
    tol: float = 5e-3
    max_evaluations: int = 40

    def __post_init__(self) -> None:
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, found {self.dtype}")
        if not self.tol > 0:
            raise ValueError(f"a draft's tol must be above 0, found {self.tol}")
        if self.max_evaluations < 1:
            raise ValueError(f"max_evaluations must be at least 1, found {self.max_evaluations}")

    def lowered(self, f: Map) -> Map:
        """`f` under autocast."""

        def low(z: State) -> State:
            device = next(leaves(z)).device.type
            with torch.autocast(device, self.dtype):
                return f(z)

        return low
