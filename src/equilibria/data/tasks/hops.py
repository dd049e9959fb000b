"""p-hop induction: induction heads, one behind the other (Sanford, Hsu and Telgarsky 2024, arXiv:2402.09268)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.lengths import VariableLengthTask
from equilibria.data.tasks.numbering import digits, distinct, hashed
from equilibria.ranges import whole

_MOST_SYMBOLS = 1000


@dataclass(frozen=True, kw_only=True)
class HopInduction(VariableLengthTask):
    """The symbol that `hops` hops lead to, at every position; all positions count in the loss and as answers.

    A hop goes from a symbol to the one after its latest earlier occurrence; one hop is what an induction head does. The
    target is the class `alphabet`, "none", where there is no such symbol. A transformer needs a depth that grows with
    the logarithm of the hops, a recurrent network a state that grows with them. As in the source, symbols are drawn
    evenly among those that differ from the symbol before: a hop from one of a pair would lead nowhere else.

    Args:
        hops: from a position to its target, at least 1 and fewer than `length`.
        alphabet: different symbols, 3 to 1000.

    Raises:
        ValueError: a number outside its range.
    """

    fewest: ClassVar[int] = 2

    hops: int = 2
    alphabet: int = 4
    length: int = 100  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        whole(1, hops=self.hops)
        if not 3 <= self.alphabet <= _MOST_SYMBOLS:
            raise ValueError(f"alphabet must be between 3 and {_MOST_SYMBOLS}, found {self.alphabet}")
        super().__post_init__()
        if self.hops >= self.length:
            raise ValueError(f"hops = {self.hops}: none leads so far within {self.length} symbols; expected fewer")

    @property
    def vocabulary_size(self) -> int:
        return self.alphabet + 1

    @property
    def count(self) -> int:
        return distinct(self.alphabet - 1, self.told_apart - 1)  # the first is drawn beside them

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Loss and accuracy of a guess that knows only where hops lead nowhere."""
        some = float((self.segment(np.arange(self.held_out)).targets < self.alphabet).double().mean())
        return {"chance_loss": some * math.log(self.alphabet), "chance_accuracy": 1.0 - some + some / self.alphabet}

    def sequences(self, numbers: np.ndarray, length: int) -> Segment:
        steps = 1 + digits(numbers, self.alphabet - 1, length - 1, self.seed, self.told_apart - 1)
        first = hashed(self.seed, -1, numbers) % self.alphabet
        symbols = np.concatenate([first[:, None], steps], axis=1).cumsum(axis=1) % self.alphabet
        targets = torch.from_numpy(hopped(symbols, self.hops, self.alphabet))
        answers = torch.ones_like(targets, dtype=torch.bool)
        return Segment(torch.from_numpy(symbols), targets, starts=True, answers=answers)


def hopped(symbols: np.ndarray, hops: int, none: int) -> np.ndarray:
    """For each position of `(B, L)` symbols the one that so many hops lead to, or `none`."""
    rows, length = symbols.shape
    # Position `length` stands for none: it is where its own hop leads.
    after, hop = np.full((rows, int(symbols.max()) + 1), length), np.full((rows, length + 1), length)
    row = np.arange(rows)
    for position in range(length):
        now = symbols[:, position]
        hop[:, position] = after[row, now]
        after[row, now] = position + 1
    place = np.tile(np.arange(length), (rows, 1))
    for _ in range(hops):
        place = np.take_along_axis(hop, place, axis=1)
    return np.take_along_axis(np.pad(symbols, ((0, 0), (0, 1)), constant_values=none), place, axis=1)
