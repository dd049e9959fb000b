"""Figures of training steps, summed on the device and read only when a line is logged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.devices import widest
from equilibria.distributed import ALONE, World
from equilibria.solvers import AdjointReport, Solution, Status


@dataclass(frozen=True)
class StepSummary:
    """Means over the steps since the last line without skipped ones; of all processes together.

    Attributes:
        steps: how many there were.
        skipped: steps beside them that were skipped for an infinite or NaN loss or gradient.
        tokens: predicted tokens.
        loss: nats per token.
        gradient_norm: before clipping.
        evaluations: of the cell, per solve; None for explicit depths.
        residual: over tokens, of the state the prediction was made from; None where not finite.
        residual_worst: the largest of them.
        unconverged: share of groups (see `Solver.scope`) that did not reach the tolerance; None for explicit
            depths.
        failed: solves that stalled, diverged or met a value that was not finite, or whose adjoint did; running out of
            evaluations is not a failure.
        solves: how many there were.
    """

    steps: int
    skipped: int
    tokens: int
    loss: float | None
    gradient_norm: float | None
    evaluations: float | None
    residual: float | None
    residual_worst: float | None
    unconverged: float | None
    failed: int
    solves: int


_FAILURES = (Status.STALLED, Status.DIVERGED, Status.NON_FINITE, Status.IRREVERSIBLE)


@dataclass(frozen=True)
class SolveRecord:
    """What is kept of a solve and of its adjoint, without their states."""

    residual: Tensor
    tolerance: float
    evaluations: int
    status: Status
    adjoint: AdjointReport

    @classmethod
    def of(cls, solution: Solution) -> "SolveRecord":
        """Those of a solution; the adjoint is filled in by the backward pass."""
        residual = solution.residual.detach()
        residual = residual.to(widest(residual.device))
        return cls(residual, solution.tolerance, solution.evaluations, solution.status, solution.adjoint)

    @property
    def failed(self) -> bool:
        """Whether one of the two stalled, diverged, met a value that was not finite or could not be run backwards."""
        return self.status in _FAILURES or self.adjoint.status in _FAILURES


class StepStatistics:
    """Running sums since the last line. Adding never waits for the device; `summary` does.

    Loss, gradient norm and counts of steps and tokens are already those of all processes when they are added. Figures
    of solves are those of this process, and are summed over all processes when they are read.
    """

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._device, self._world = device, world
        self.reset()

    def reset(self) -> None:
        """Resets all sums."""
        self._sums = torch.zeros(2, dtype=widest(self._device), device=self._device)  # loss, gradient norm
        self._counts = [0, 0, 0]  # steps, skipped steps, tokens
        # residual, unconverged: an addend per solve
        self._solve_sums = torch.zeros(2, dtype=widest(self._device), device=self._device)
        self._worst = torch.zeros((), dtype=widest(self._device), device=self._device)
        self._solve_counts = [0, 0, 0]  # evaluations, solves, failed solves

    def add_solves(self, solves: Sequence[SolveRecord]) -> None:
        """Counts the solves of a training step, after its backward pass."""
        for solve in solves:
            beyond = (~(solve.residual <= solve.tolerance)).to(solve.residual.dtype)
            self._solve_sums += torch.stack([solve.residual.mean(), beyond.mean()])
            self._worst = torch.maximum(self._worst, solve.residual.max())
            added = (solve.evaluations, 1, int(solve.failed))
            self._solve_counts = [a + b for a, b in zip(self._solve_counts, added, strict=True)]

    def add_step(self, loss: Tensor, gradient_norm: Tensor, tokens: int) -> None:
        """Counts one optimizer step."""
        self._sums[0] += loss.detach()
        self._sums[1] += gradient_norm.detach()
        self._counts = [self._counts[0] + 1, self._counts[1], self._counts[2] + tokens]

    def add_skipped(self) -> None:
        """Counts a step that was not taken."""
        self._counts[1] += 1

    def summary(self) -> StepSummary | None:
        """The means, or None without a step since `reset`; all processes must call."""
        steps, skipped, tokens = self._counts
        if steps + skipped == 0:
            return None
        loss, gradient_norm = self._sums.tolist()
        (residual, unconverged), worst, (evaluations, solves, failed) = self._solves()
        return StepSummary(
            steps=steps,
            skipped=skipped,
            tokens=tokens,
            loss=loss / steps if steps else None,
            gradient_norm=gradient_norm / steps if steps else None,
            evaluations=evaluations / solves if solves else None,
            residual=residual / solves if solves and math.isfinite(residual) else None,
            residual_worst=worst if solves and math.isfinite(worst) else None,
            unconverged=unconverged / solves if solves else None,
            failed=int(failed),
            solves=int(solves),
        )

    def _solves(self) -> tuple[list[float], float, list[float]]:
        """The solves of all processes: sums, the worst residual, counts."""
        sums = self._world.sum(*self._solve_sums.tolist(), *self._solve_counts)
        (worst,) = self._world.highest(float(self._worst))
        return sums[:2], worst, sums[2:]

    def tensors(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint; all processes must call."""
        sums, worst, counts = self._solves()
        return {
            "sums": self._sums.cpu(),
            "counts": torch.tensor(self._counts, dtype=torch.int64),
            "solve_sums": torch.tensor([*sums, worst], dtype=torch.float64),
            "solve_counts": torch.tensor(counts, dtype=torch.int64),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores the sums of a checkpoint; those of solves go to rank 0."""
        self.reset()
        self._sums = tensors["sums"].to(self._device)
        self._counts = tensors["counts"].tolist()
        if self._world.main:
            self._solve_sums, self._worst = tensors["solve_sums"].to(self._device).tensor_split([2])
            self._worst = self._worst[0]
            self._solve_counts = tensors["solve_counts"].tolist()
