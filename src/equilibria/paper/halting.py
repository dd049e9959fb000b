"""The depth of a Universal Transformer (Dehghani et al. 2018, arXiv:1807.03819): each position halts on its own, by
adaptive computation time (Graves 2016, arXiv:1603.08983).

    h_0 = z0,   h_t = f(h_{t−1} + P + T_t) where a position still runs, h_{t−1} where it has halted
    p_t = σ(w·h_t + b),   N = the first t with p_1 + … + p_t ≥ threshold, at most max_steps
    R = 1 − (p_1 + … + p_{N−1}),   state = p_1 h_1 + … + p_{N−1} h_{N−1} + R h_N,   ponder cost = N + R
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equilibria.cells import Cell
from equilibria.depths.base import Depth, Reached
from equilibria.nn.positions import distance_embedding
from equilibria.ranges import at_least, share, whole

# Published code starts here: a position runs for two steps at first.
_HALTING_BIAS = 1.0


@dataclass(frozen=True)
class Pondered:
    """What pondering reached at every position.

    Attributes:
        state_BLD: the mean of a position's states, weighted by its probabilities of halting.
        steps_BL: `N`, integers.
        remainder_BL: `R`; the ponder cost's only differentiable part.
    """

    state_BLD: Tensor
    steps_BL: Tensor
    remainder_BL: Tensor


class Halting(nn.Module, Depth):
    """Apply the cell until each position has halted. Causal where the cell is, at every threshold.

    Sinusoids of the position in the segment (`P`) and of the step (`T`) are added before every application; the cell
    sees a memory without them.

    Args:
        features: of the state, an even number; none for those of the cell that it arranges.
        max_steps: most applications.
        threshold: sum of the probabilities at which a position halts, `0 < threshold ≤ 1`.
        ponder_weight: weight, in the training loss, of the mean ponder cost.
    """

    halt: nn.Linear

    def __init__(
        self, features: int | None = None, max_steps: int = 8, threshold: float = 0.99, ponder_weight: float = 1e-3
    ) -> None:
        super().__init__()
        whole(1, max_steps=max_steps)
        share(threshold=threshold)
        at_least(0, ponder_weight=ponder_weight)
        self.max_steps, self.threshold, self.ponder_weight = max_steps, threshold, ponder_weight
        if features is not None:
            self.halt = _halt(features)

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Apply `f` from `z0`; the penalty is the weighted ponder cost."""
        pondered = self.ponder(f, z0)
        penalty = None
        if training and self.ponder_weight:
            penalty = self.ponder_weight * (pondered.steps_BL + pondered.remainder_BL).mean()
        return Reached(pondered.state_BLD, penalty=penalty)

    def arrange(self, make: Callable[[bool], Cell]) -> Cell:
        """A cell that starts from the input, which is not injected again; raises ValueError where it has another number
        of features."""
        cell = make(False)
        if not hasattr(self, "halt"):
            self.halt = _halt(cell.d_model)
        if self.halt.in_features != cell.d_model:
            raise ValueError(f"features must be the cell's {cell.d_model}, found {self.halt.in_features}; omit it")
        return cell

    def ponder(self, f: Callable[[Tensor], Tensor], z0: Tensor) -> Pondered:
        """The weighted state of `f` from `z0`, with the steps and the remainder of every position."""
        if not hasattr(self, "halt"):
            raise ValueError("Halting has no features yet; give features, those of the state")
        length = z0.shape[1]
        sinusoids = distance_embedding(max(length, self.max_steps + 1), z0.shape[-1], z0).flip(0)
        positions_LD = sinusoids[:length]
        h_BLD, mean_BLD = z0, torch.zeros_like(z0)
        left_BL = z0.new_ones(z0.shape[:2])
        remainder_BL, steps_BL = torch.zeros_like(left_BL), torch.zeros_like(left_BL, dtype=torch.int32)
        running_BL = torch.ones_like(left_BL, dtype=torch.bool)
        for step in range(1, self.max_steps + 1):
            moved = f(h_BLD + positions_LD + sinusoids[step])
            h_BLD = torch.where(running_BL.unsqueeze(-1), moved, h_BLD)
            p_BL = torch.sigmoid(self.halt(h_BLD)).squeeze(-1)
            over_BL = 1.0 - left_BL + p_BL >= self.threshold
            halts_BL = running_BL & over_BL if step < self.max_steps else running_BL
            goes_on_BL = running_BL & ~halts_BL
            weight_BL = torch.where(halts_BL, left_BL, torch.where(goes_on_BL, p_BL, 0.0))
            mean_BLD = mean_BLD + weight_BL.unsqueeze(-1) * h_BLD
            remainder_BL = torch.where(halts_BL, left_BL, remainder_BL)
            left_BL = torch.where(goes_on_BL, left_BL - p_BL, left_BL)
            steps_BL = steps_BL + running_BL
            running_BL = goes_on_BL
            if not bool(running_BL.any()):
                break  # further steps would change nothing
        return Pondered(mean_BLD, steps_BL, remainder_BL)


def _halt(features: int) -> nn.Linear:
    if features < 2 or features % 2:
        raise ValueError(f"features must be even, found {features}")
    halt = nn.Linear(features, 1)
    nn.init.constant_(halt.bias, _HALTING_BIAS)
    return halt
