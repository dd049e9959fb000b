"""Where solves start, in training and in evaluation: at random, so that a solution does not depend on it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from equilibria.depths.chunks import SEVERITY
from equilibria.deq import fixed_point
from equilibria.gradients import Gradient
from equilibria.gradients.base import Solve
from equilibria.ranges import above, at_least, share, whole
from equilibria.solvers import Solution, Solver, Status


@dataclass(frozen=True)
class RandomStart:
    """Training solves that start at normal noise around the cell's own start. What is then learned in a bounded number
    of evaluations depends less on where a solve begins, and more evaluations go on to improve it (Anil et al. 2022,
    arXiv:2211.09961; Huang, Geng and Kolter 2026, arXiv:2605.21488).

    It is drawn for each element, from the generators whose state checkpoints hold.

    Args:
        std: standard deviation of the noise; 0 draws none.
        share: of the rows of a batch that start so, each row drawn with that probability; the others start as in
            evaluation. Anil et al. take a half.
    """

    std: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        at_least(0, std=self.std)
        share(share=self.share)

    def around(self, z0: Tensor) -> Tensor:
        """Starts of the shape of `z0`, `(B, L, ·)`."""
        if not self.std:
            return z0
        noise = self.std * torch.randn_like(z0)
        if self.share < 1:
            noise = noise * (torch.rand_like(z0[:, :1, :1]) < self.share)
        return z0 + noise


@dataclass(frozen=True)
class Restarts:
    """Solves from several starts in evaluation. Of each group the solution with the least residual is taken; one that
    converged comes before one that did not (Huang, Geng and Kolter 2026, arXiv:2605.21488).

    The starts are solved one after the other, in the memory of one solve. Their noise is drawn from `seed` alone and is
    the same in every row. With scope `"sample"`, where a group is a row, a row's solution depends neither on its batch
    nor on what was solved before it; with `"all"` one start is taken for the whole batch. Figures are of the solution
    that was taken, except that evaluations are those of all starts.

    Args:
        starts: how many in all, at least 2. The first is the cell's own.
        std: standard deviation of the normal noise around it, where the others are.
        seed: of the noise.
    """

    starts: int = 8
    std: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole(2, starts=self.starts)
        above(0, std=self.std)

    def check(self, solver: Solver) -> None:
        """Raises ValueError for a solver of tokens: which of two starts a token takes would depend on later ones."""
        if solver.scope not in ("sample", "all"):
            raise ValueError(
                f"restarts choose by the residual, which says of a token what comes after it; eval_solver.scope is "
                f'"{solver.scope}": give "sample" where the model need not be causal, or drop restarts'
            )

    def solve(self, f: Callable[[Tensor], Tensor], z0: Tensor, solver: Solver, gradient: Gradient) -> Solution:
        """The best solution, with that gradient where gradients are on."""
        with torch.no_grad():
            first, *others = self._around(z0)
            best = _Best.of(fixed_point(f, first, solver, on_failure="ignore"))
            for start in others:
                best = best.against(fixed_point(f, start, solver, on_failure="ignore"))
        solution = best.solution()
        if not torch.is_grad_enabled():
            return solution
        solve = Solve(solver)
        attached = gradient.attach(f, solution.value, solve)
        return replace(solution, value=attached.value, tracked=attached.tracked, adjoint=solve.report)

    def _around(self, z0: Tensor) -> Iterator[Tensor]:
        yield z0
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.starts - 1):
            # Drawn on the CPU, so that they are the same on every device.
            yield z0 + self.std * torch.randn(z0.shape[1:], generator=generator).to(z0)


@dataclass(frozen=True)
class _Best:
    """The best solution of each group so far, the solve that it is from, and the statuses of all solves."""

    best: Solution
    statuses: tuple[Status, ...]
    taken: Tensor

    @classmethod
    def of(cls, solution: Solution) -> Self:
        return cls(solution, (solution.status,), torch.zeros_like(solution.group_evaluations))

    def against(self, other: Solution) -> Self:
        """The better of the two, group by group; the cost of both."""
        best = self.best
        ahead = other.residual < best.residual
        better = torch.where(other.converged == best.converged, ahead, other.converged)
        wide = better.reshape(*better.shape, *[1] * (best.value.dim() - better.dim()))
        traces = [trace for trace in (best.group_trace, other.group_trace) if trace is not None]
        both = replace(
            best,
            value=torch.where(wide, other.value, best.value),
            residual=torch.where(better, other.residual, best.residual),
            converged=torch.where(better, other.converged, best.converged),
            evaluations=best.evaluations + other.evaluations,
            trace=[*best.trace, *other.trace],
            group_evaluations=best.group_evaluations + other.group_evaluations,
            group_trace=torch.cat(traces) if traces else None,
        )
        number = len(self.statuses)
        return type(self)(both, (*self.statuses, other.status), torch.where(better, number, self.taken))

    def solution(self) -> Solution:
        """Converged if every group is; otherwise the worst status among the solves the unconverged groups came from."""
        left = ~self.best.converged
        if not bool(left.any()):
            return replace(self.best, status=Status.CONVERGED)
        statuses = {self.statuses[number] for number in self.taken[left].tolist()}
        if bool(torch.isfinite(self.best.residual).all()):
            # It was another group of that solve whose value was not finite.
            statuses = {Status.MAX_EVALUATIONS if one is Status.NON_FINITE else one for one in statuses}
        return replace(self.best, status=max(statuses, key=SEVERITY.index))
