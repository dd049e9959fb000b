"""The spread of repeated measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quartiles:
    """The median and quartiles of repeated measurements."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
        return cls(middle, low, high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Quartiles:
    """The quartiles of the ratios of each round."""
    return Quartiles.of([a / b for a, b in zip(ours, theirs, strict=True)])
