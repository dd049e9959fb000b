"""The copy memory task (Hochreiter and Schmidhuber 1997)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibria.data.batches import Segment
from equilibria.data.tasks.symbols import SymbolTask

_BLANK, _MARKER = 0, 9


@dataclass(frozen=True, kw_only=True)
class CopyMemory(SymbolTask):
    """Repeat, at the end of a sequence, the symbols it began with (this form: Arjovsky et al. 2015, arXiv:1511.06464,
    and Bai et al. 2018, arXiv:1803.01271).

    A sequence has `blanks + 2 · symbols` positions. Inputs: `symbols` symbols from 1 to 8, `blanks − 1` zeros and
    `symbols + 1` markers 9. Targets: zeros, and at the last `symbols` positions the symbols. Every position counts in
    the loss, a mean of 10-class cross-entropies.

    Args:
        symbols: to remember, 1 to 20.
        blanks: positions between the last symbol and the first that must be repeated, at least 1.
        held_out: sequences kept for validation; fewer than there are.
        seed: of the order in which the sequences come; another seed holds out others.

    Raises:
        ValueError: a number outside its range.
    """

    blanks: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blanks < 1:
            raise ValueError(f"blanks must be at least 1, found {self.blanks}")

    @property
    def vocabulary_size(self) -> int:
        return 10

    @property
    def length(self) -> int:
        return self.blanks + 2 * self.symbols

    @property
    def chance(self) -> float:
        """Certain of every blank, ignorant of every symbol."""
        return self.symbols * math.log(8) / self.length

    def arranged(self, symbols: Tensor) -> Segment:
        """Inputs and targets, `(B, length)` each; the symbols are the answers."""

        def constant(value: int, length: int) -> Tensor:
            return symbols.new_full((len(symbols), length), value)

        inputs = (symbols, constant(_BLANK, self.blanks - 1), constant(_MARKER, self.symbols + 1))
        targets = torch.cat((constant(_BLANK, self.blanks + self.symbols), symbols), dim=1)
        return Segment(torch.cat(inputs, dim=1), targets, starts=True, answers=targets != _BLANK)
