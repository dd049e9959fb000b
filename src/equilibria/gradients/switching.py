"""The implicit gradient of a solve that converged, the phantom gradient of one that did not.

The implicit gradient costs one stored evaluation and is right at a fixed point alone: where a solve falls short it
misleads, and a model that follows it learns less and less. The phantom gradient is that of a truncated computation
wherever it starts, and training with it brings convergence back. Which of them a step takes is read off its residuals.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from equilibria.gradients.base import Attached, Gradient, Solve
from equilibria.gradients.implicit import Implicit
from equilibria.gradients.phantom import Phantom
from equilibria.solvers import Map, Picard, State
from equilibria.solvers.mapped import plain


@dataclass(frozen=True)
class Switching(Gradient):
    """Take one gradient where enough of a batch converged, and another where it did not.

    A batch decides as a whole, and in distributed training each process for its own rows: in training, the value of a
    row may have moved on by the phantom steps because of its neighbours. Evaluation takes no gradient: rows stay apart.

    Either way the solution's tracked evaluation, which a residual penalty reads, is the one at the end of the solve.

    Args:
        converged: the implicit gradient. Its default solves the adjoint equation to a relative residual of 5 % by
            plain iteration: digits below the noise of a batch are not worth their time.
        otherwise: the phantom gradient. Its default keeps states only, so that a step never needs much more memory
            than one evaluation.
        share: of the groups of a solve (samples, or tokens) that must have reached the tolerance, `0 < share ≤ 1`.
    """

    converged: Implicit = field(default_factory=lambda: Implicit(Picard(tol=5e-2, max_evaluations=10, scope="sample")))
    otherwise: Phantom = field(default_factory=lambda: Phantom(steps=5, checkpoint=True))
    share: float = 0.99
    begins_at: ClassVar = "proposal"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, found {self.share}")

    def attach(self, f: Map, state: State, solve: Solve) -> Attached:
        """As the gradient that fits the solve."""
        assert solve.iterate is not None
        done = plain(solve.iterate.converged)
        if done.sum() >= self.share * done.numel():
            return self.converged.attach(f, state, solve)
        attached = self.otherwise.attach(f, state, solve)
        return replace(attached, tracked=attached.first)
