"""When a token has been computed for long enough: frozen rules.

Each looks only at a token's own state, so that a causal map stays causal and rows of a batch stay apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor
from torch.nn import functional as F

from equilibria.ranges import above, whole


@dataclass(frozen=True)
class Evaluated:
    """Tokens that were just evaluated.

    Attributes:
        spent: evaluations that each has had, `(…)`.
        residual: of their states, `(…)`.
        before, now: log-probabilities predicted from the state and from its value, `(…, V)`; None unless the rule
            reads them.
    """

    spent: Tensor
    residual: Tensor
    before: Tensor | None
    now: Tensor | None


class Exit(ABC):
    """A rule.

    Attributes:
        tol: residual that counts as converged in what is reported.
        reads_predictions: whether the rule needs the predicted distributions, which cost two softmaxes per evaluation.
    """

    tol: float
    reads_predictions: ClassVar[bool] = False

    @property
    def together(self) -> int:
        """Evaluations after which the first token can be done."""
        return 1

    def stricter(self, share: float) -> Exit:
        """The rule with a share of its tolerance, where it has one."""
        return self

    @abstractmethod
    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        """Which tokens leave with the state that was evaluated, booleans `(…)`, at `margin` times the threshold."""


@dataclass(frozen=True)
class ExitOnResidual(Exit):
    """Leave at a residual of at most `tol`, as a solver freezes what has converged."""

    tol: float = 5e-3

    def __post_init__(self) -> None:
        above(0, tol=self.tol)

    def stricter(self, share: float) -> Self:
        return replace(self, tol=share * self.tol)

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        return tokens.residual <= margin * self.tol


@dataclass(frozen=True)
class ExitOnChange(Exit):
    """Leave when one more evaluation changes the predicted distribution by at most `divergence` nats.

    Args:
        divergence: Kullback-Leibler divergence of the prediction before from the one after the evaluation.
    """

    divergence: float = 1e-3
    tol: float = 5e-3
    reads_predictions = True

    def __post_init__(self) -> None:
        above(0, divergence=self.divergence)

    def stricter(self, share: float) -> Self:
        return replace(self, divergence=share * share * self.divergence)  # it is quadratic in what changes

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        assert tokens.before is not None
        assert tokens.now is not None
        divergence = F.kl_div(tokens.before, tokens.now, reduction="none", log_target=True).sum(-1)
        return divergence <= self.stricter(margin).divergence


@dataclass(frozen=True)
class ExitAfter(Exit):
    """Leave after a number of evaluations, the last of which measures the state that one fewer have led to.

    Args:
        evaluations: at least 1.
    """

    evaluations: int
    tol: float = 5e-3

    def __post_init__(self) -> None:
        whole(1, evaluations=self.evaluations)

    @property
    def together(self) -> int:
        return self.evaluations

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        return tokens.spent >= self.evaluations
