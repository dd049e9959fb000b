"""When a token has been computed for long enough: frozen rules that look at one token's evaluations at a time.

Each looks only at what a token's own state does, so that a causal map stays causal and rows of a batch stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Evaluated:
    """Tokens that were just evaluated.

    Attributes:
        spent: evaluations that each has had, `(…)`.
        residual: of their states, `(…)`.
        before, now: log-probabilities predicted from the state and from its value, `(…, V)`; None where the rule does
            not read them.
    """

    spent: Tensor
    residual: Tensor
    before: Tensor | None
    now: Tensor | None


class Exit(Protocol):
    """A rule. `tol` is the residual that counts as converged in what is reported.

    Attributes:
        reads_predictions: whether the rule needs the predicted distributions, which cost two softmaxes per evaluation.
        together: evaluations after which the first token can be done.
    """

    @property
    def tol(self) -> float: ...

    @property
    def reads_predictions(self) -> bool: ...

    @property
    def together(self) -> int: ...

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        """Which tokens leave with the state that was evaluated, booleans `(…)`.

        Args:
            tokens: what is known of them.
            margin: share of its threshold that the rule shall ask for.
        """
        ...


@dataclass(frozen=True)
class ExitOnResidual:
    """Leave at a residual of at most `tol`, as a solver freezes what has converged."""

    tol: float = 5e-3
    reads_predictions = False
    together = 1

    def __post_init__(self) -> None:
        _check_positive("tol", self.tol)

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        """By residual."""
        return tokens.residual <= margin * self.tol


@dataclass(frozen=True)
class ExitOnChange:
    """Leave when one more evaluation changes the predicted distribution by at most `divergence` nats.

    Args:
        divergence: Kullback-Leibler divergence of the prediction before from the one after the evaluation.
        tol: residual that counts as converged in what is reported.
    """

    divergence: float = 1e-3
    tol: float = 5e-3
    reads_predictions = True
    together = 1

    def __post_init__(self) -> None:
        _check_positive("divergence", self.divergence)

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        """By change of the prediction."""
        assert tokens.before is not None
        assert tokens.now is not None
        divergence = F.kl_div(tokens.before, tokens.now, reduction="none", log_target=True).sum(-1)
        return divergence <= margin * margin * self.divergence  # it is quadratic in what changes


@dataclass(frozen=True)
class ExitAfter:
    """Leave after so many evaluations, whatever they have led to.

    Args:
        evaluations: at least 1.
        tol: residual that counts as converged in what is reported.
    """

    evaluations: int
    tol: float = 5e-3
    reads_predictions = False

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, found {self.evaluations}")

    @property
    def together(self) -> int:
        """All of them."""
        return self.evaluations

    def done(self, tokens: Evaluated, margin: float) -> Tensor:
        """All at once."""
        return tokens.spent >= self.evaluations


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, found {value}")
