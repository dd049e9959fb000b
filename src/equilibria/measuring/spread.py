"""The spread of repeated measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quartiles:
    """The median of repeated measurements, and what half of them lie between."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Those of one value or more."""
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
        return cls(middle, low, high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Quartiles:
    """Those of the ratios round by round."""
    return Quartiles.of([a / b for a, b in zip(ours, theirs, strict=True)])
