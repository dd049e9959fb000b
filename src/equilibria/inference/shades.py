"""Shades for numbers of evaluations, the same in the terminal, a report and the playground."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = 8
"""From 0, the lightest, for few."""


@dataclass(frozen=True)
class Shade:
    """A level that occurs: the numbers of evaluations that have it, and their share of all."""

    level: int
    least: int
    most: int
    share: float

    @property
    def text(self) -> str:
        """The numbers, as a legend names them."""
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"

    @property
    def percent(self) -> str:
        """The share, as a legend names it."""
        return f"{self.share:.0%}" if self.share >= 0.005 else "<1%"


@dataclass(frozen=True)
class Shades:
    """Equal steps between two numbers of evaluations, and their ends beyond.

    Attributes:
        least: at most so many are the lightest.
        most: at least so many, and more than `least`, are the darkest.
    """

    least: int
    most: int

    @classmethod
    def of(cls, counts: Iterable[int]) -> Shades:
        """Those that tell given numbers apart: their 5th and 95th percentile (by nearest rank) are the ends, so that
        one token that takes long leaves shades to the others."""
        ordered = sorted(counts)
        rank = [max(0, math.ceil(share * len(ordered)) - 1) for share in (0.05, 0.95)]
        return cls(ordered[rank[0]], ordered[rank[1]])

    def level(self, evaluations: int) -> int:
        """Of 0 to `LEVELS − 1`."""
        if evaluations <= self.least:
            return 0
        if evaluations >= self.most:
            return LEVELS - 1
        return math.floor((evaluations - self.least) / (self.most - self.least) * (LEVELS - 1) + 0.5)

    def legend(self, counts: Iterable[int]) -> list[Shade]:
        """The levels that occur among given numbers, from light to dark."""
        found, levels = Counter(counts), {}
        for number in sorted(found):
            levels.setdefault(self.level(number), []).append(number)
        total = sum(found.values())
        return [
            Shade(level, inside[0], inside[-1], sum(found[number] for number in inside) / total)
            for level, inside in levels.items()
        ]
