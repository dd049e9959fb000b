"""A depth for inference in which tokens that are done stop costing.

Plain iteration on the tokens that are still active: those that have left are no longer queries, while their keys and
values stay. All tokens are evaluated together at first, then the active ones in tiles of one row each, from left to
right, always of the same size. So the arithmetic of a token depends only on its own row up to itself, and what is
causal and independent of the batch stays so to the last bit, among segments of one length and among all that are longer
than a tile. A segment of at most a tile is never split; it agrees with longer ones within the tolerance. An evaluation
by tiles is that of the whole segment, since a causal token needs only the keys of earlier tiles.

Tokens that leave early see their predecessors move on. So they leave with a margin, and at the end all are evaluated
together once more: that gives the residual of what is returned, and tokens above the tolerance come back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from equilibria.cells import Cell
from equilibria.depths.base import Depth, Reached
from equilibria.depths.exits import Evaluated, Exit, ExitOnResidual
from equilibria.ranges import share, whole
from equilibria.solvers import Solution, Status
from equilibria.solvers.residual import relative_residual
from equilibria.solvers.solution import worst


@runtime_checkable
class TokenMap(Protocol):
    """A causal map whose tokens can be evaluated apart, as a cell's over a cache."""

    def __call__(self, z_BLD: Tensor) -> Tensor:
        """The map at all tokens."""
        ...

    def at(self, row: int, tokens_T: Tensor) -> Callable[[Tensor], Tensor]:
        """The map at some tokens of a row, `(1, T, ·)`, the others being as they were last evaluated."""
        ...

    def hold(self, z_BLD: Tensor) -> None:
        """Every token was last evaluated at its state in `z`."""
        ...

    def predictions(self, z_BLD: Tensor) -> Tensor:
        """Log-probabilities `(B, L, V)` of the next tokens."""
        ...


@dataclass(frozen=True)
class Adaptive(Depth):
    """Iterate each token until a rule lets it go. It has no gradient.

    Args:
        exit: when a token leaves.
        max_evaluations: most evaluations of a token, before the one that measures it and that of `confirm`.
        together: evaluations that all tokens have together before some are evaluated apart.
        tile: tokens that are evaluated together then. A segment of no more tokens is never split.
        margin: share of the rule's threshold at which a token leaves before others, `0 < margin ≤ 1`.
        confirm: whether all tokens are evaluated once more at the end. If not, a residual is that at which its token
            left; that of what is returned may be higher, usually by less than the margin.
    """

    in_recipes = False  # it cannot be trained

    exit: Exit = field(default_factory=ExitOnResidual)
    max_evaluations: int = 40
    together: int = 3
    tile: int = 64
    margin: float = 0.5
    confirm: bool = True
    solves = True

    def __post_init__(self) -> None:
        whole(1, max_evaluations=self.max_evaluations, together=self.together, tile=self.tile)
        share(margin=self.margin)

    def obstacle(self, cell: Cell) -> str | None:
        """A cell that is not causal."""
        if cell.causal:
            return None
        return "Adaptive evaluates tokens apart, and here all see each other (causal = false); take Equilibrium"

    def stricter(self, share: float) -> Self:
        return replace(self, exit=self.exit.stricter(share))

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        """Iterate from `z0`; raises ValueError in training, or for a map whose tokens cannot be evaluated apart."""
        if training or not isinstance(f, TokenMap):
            raise ValueError("Adaptive is a depth for inference over a cache; train with Equilibrium")
        run = _Run(self, f, z0)
        run.iterate()
        f.hold(run.z)
        solution = run.solution()
        return Reached(solution.value, solution)


class _Run:
    """The tokens of one segment on their way. What is decided of a token depends only on its row up to itself."""

    def __init__(self, depth: Adaptive, f: TokenMap, z0: Tensor) -> None:
        self.depth, self.f, self.z = depth, f, z0
        tokens = z0.shape[:2]
        self.value = torch.empty_like(z0)
        self.residual = z0.new_full(tokens, torch.inf, dtype=torch.float32)
        self.done = torch.zeros(tokens, dtype=torch.bool, device=z0.device)
        self.spent = torch.zeros(tokens, dtype=torch.int32, device=z0.device)
        self.evaluated = self.spent.clone()
        self.trace: list[float] = []

    def iterate(self) -> None:
        """Rounds of evaluations until all tokens are done; with `confirm` the last one is of all tokens."""
        depth = self.depth
        whole, together = self.z.shape[1] <= depth.tile, max(depth.together, depth.exit.together)
        everything = active = torch.ones_like(self.done)
        while bool(active.any()):
            apart = not whole and len(self.trace) >= together
            self.spent += active
            if apart:
                self._evaluate_tiles(active)
                active = self._unfinished(active)
            else:
                self._evaluate_all(1.0 if whole else depth.margin)
                active = self._unfinished(everything)
            if apart and depth.confirm and not bool(active.any()):
                self._evaluate_all(1.0)
                active = self._unfinished(everything)
            if bool(active.any()):
                self.z = torch.where(active.unsqueeze(-1), self.value, self.z)

    def solution(self) -> Solution:
        tol = self.depth.exit.tol
        converged, status = self.residual <= tol, Status.CONVERGED
        if not bool(converged.all()):
            finite = bool(torch.isfinite(self.residual).all())
            status = Status.MAX_EVALUATIONS if finite else Status.NON_FINITE
        return Solution(
            value=self.z,
            status=status,
            residual=self.residual,
            converged=converged,
            tolerance=tol,
            evaluations=len(self.trace),
            trace=self.trace,
            group_evaluations=self.evaluated,
        )

    def _unfinished(self, among: Tensor) -> Tensor:
        """Which of the tokens go on: not done, within their budget, and finite."""
        within = (self.spent <= self.depth.max_evaluations) & torch.isfinite(self.residual)
        return among & ~self.done & within

    def _evaluate_all(self, margin: float) -> None:
        self.value = self.f(self.z)
        self.residual, self.done = self._judged(self.z, self.value, self.spent, margin)
        self.evaluated += 1
        self.trace.append(worst(self.residual))

    def _evaluate_tiles(self, active: Tensor) -> None:
        for row, tokens_T, count in self._tiles(active):
            z_1TD = self.z[row : row + 1, tokens_T]
            value_1TD = self.f.at(row, tokens_T)(z_1TD)
            residual_1T, done_1T = self._judged(
                z_1TD, value_1TD, self.spent[row : row + 1, tokens_T], self.depth.margin
            )
            here = tokens_T[:count]
            self.value[row, here] = value_1TD[0, :count]
            self.residual[row, here] = residual_1T[0, :count]
            self.done[row, here] = done_1T[0, :count]
        self.evaluated += active
        self.trace.append(worst(self.residual))

    def _tiles(self, active: Tensor) -> Iterator[tuple[int, Tensor, int]]:
        """Rows and tokens, left to right; the last tile of a row is padded with its last token."""
        counts = active.sum(dim=1).tolist()
        for row, tokens_N in enumerate(active.nonzero()[:, 1].split(counts)):
            for tokens_T in tokens_N.split(self.depth.tile):
                count = len(tokens_T)
                if count:
                    yield row, F.pad(tokens_T, (0, self.depth.tile - count), value=int(tokens_T[-1])), count

    def _judged(self, z: Tensor, value: Tensor, spent: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        residual = relative_residual(value, z)
        before = now = None
        if self.depth.exit.reads_predictions:
            before, now = self.f.predictions(z), self.f.predictions(value)
        return residual, self.depth.exit.done(Evaluated(spent, residual, before, now), margin)
