"""The reversal task, for models that read a source and write a target."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from equilibria.data.batches import Segment
from equilibria.data.tasks.symbols import SymbolTask


@dataclass(frozen=True, kw_only=True)
class Reversal(SymbolTask):
    """Read symbols and write them in reverse order (one of the algorithmic tasks of Dehghani et al. 2018,
    arXiv:1807.03819). Class 0 is never a target: it may start them.

    Args:
        symbols: to reverse, 1 to 20.
        held_out: sequences kept for validation; fewer than there are.
        seed: of the order in which the sequences come; another seed holds out others.

    Raises:
        ValueError: a number outside its range.
    """

    has_source: ClassVar[bool] = True

    @property
    def vocabulary_size(self) -> int:
        return 9

    @property
    def length(self) -> int:
        return self.symbols

    @property
    def chance(self) -> float:
        """Ignorant of every symbol."""
        return math.log(8)

    def arranged(self, symbols: Tensor) -> Segment:
        """Sources and targets, `(B, symbols)` each."""
        return Segment(symbols, symbols.flip(1), starts=True)
