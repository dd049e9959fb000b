"""Figures of training steps, summed where they arise and read only when a line is logged."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.solvers import Solution


@dataclass(frozen=True)
class StepSummary:
    """Means over the steps since the last line.

    Attributes:
        steps: how many there were.
        tokens: predicted tokens.
        loss: nats per token.
        gradient_norm: before clipping.
        evaluations: of the cell, per solve; None for explicit depths.
        residual: over tokens, of the state the prediction was made from; None where not finite.
        residual_worst: the largest of them.
    """

    steps: int
    tokens: int
    loss: float
    gradient_norm: float
    evaluations: float | None
    residual: float | None
    residual_worst: float | None

    @property
    def finite(self) -> bool:
        """Whether training can go on: neither a loss nor a gradient was NaN or infinite."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class StepStatistics:
    """Running sums since the last line. Adding never waits for the device; `summary` does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        # loss, gradient norm, residual (one addend per solve)
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._worst = torch.zeros((), dtype=torch.float64, device=self._device)
        # steps, tokens, evaluations, solves
        self._counts = [0, 0, 0, 0]

    def add_solve(self, solution: Solution) -> None:
        """Counts one solve of a training step."""
        residual = solution.residual.detach().double()
        self._sums[2] += residual.mean()
        self._worst = torch.maximum(self._worst, residual.max())
        self._counts[2] += solution.evaluations
        self._counts[3] += 1

    def add_step(self, loss: Tensor, gradient_norm: Tensor, tokens: int) -> None:
        """Counts one optimizer step."""
        self._sums[0] += loss.detach()
        self._sums[1] += gradient_norm.detach()
        self._counts[0] += 1
        self._counts[1] += tokens

    def summary(self) -> StepSummary | None:
        """The means, or None without a step since `reset`."""
        steps, tokens, evaluations, solves = self._counts
        if steps == 0:
            return None
        loss, gradient_norm, residual, worst = torch.cat([self._sums, self._worst[None]]).tolist()
        return StepSummary(
            steps=steps,
            tokens=tokens,
            loss=loss / steps,
            gradient_norm=gradient_norm / steps,
            evaluations=evaluations / solves if solves else None,
            residual=residual / solves if solves and math.isfinite(residual) else None,
            residual_worst=worst if solves and math.isfinite(worst) else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint."""
        counts = torch.tensor(self._counts, dtype=torch.int64)
        return {"sums": self._sums, "worst": self._worst, "counts": counts}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from the sums of a checkpoint."""
        self._sums = tensors["sums"].to(self._device)
        self._worst = tensors["worst"].to(self._device)
        self._counts = tensors["counts"].tolist()
