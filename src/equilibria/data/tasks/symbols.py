"""Tasks on sequences of symbols: copy memory and reversal."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.base import SequenceTask
from equilibria.data.tasks.numbering import digits, distinct
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer
from equilibria.ranges import whole

_BLANK, _MARKER = 0, 9
_LONGEST = 1000


@dataclass(frozen=True, kw_only=True)
class SymbolTask(SequenceTask):
    """A task on symbols from 1 to 8.

    Args:
        symbols: how many, 1 to 1000.
        held_out: sequences kept for validation; fewer than there are.
        seed: of the order of the sequences; another seed holds out others.

    Raises:
        ValueError: a number outside its range.
    """

    symbols: int = 10
    held_out: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.symbols <= _LONGEST:
            raise ValueError(f"symbols must be between 1 and {_LONGEST}, found {self.symbols}")
        whole(0, seed=self.seed)
        self.check_count()

    @property
    def count(self) -> int:
        return distinct(8, self.symbols)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return digit_tokenizer()

    @property
    @abstractmethod
    def chance(self) -> float:
        """The least loss without memory, in nats."""

    def check_unseen(self, trained: SequenceTask) -> None:
        if isinstance(trained, SymbolTask) and self.symbols == trained.symbols:
            self.check_held_out_of(trained, "seed")

    def yardsticks(self, name: Split) -> dict[str, float]:
        return {"chance_loss": self.chance}

    def segment(self, numbers: np.ndarray) -> Segment:
        return self.arranged(torch.from_numpy(digits(numbers, 8, self.symbols, self.seed) + 1))

    @abstractmethod
    def arranged(self, symbols: Tensor) -> Segment:
        """Inputs and targets for `(B, symbols)` symbols."""


@dataclass(frozen=True, kw_only=True)
class CopyMemory(SymbolTask):
    """Repeat, at the end of a sequence, the symbols it began with (Hochreiter and Schmidhuber 1997; this form: Arjovsky
    et al. 2015, arXiv:1511.06464, and Bai et al. 2018, arXiv:1803.01271).

    A sequence has `blanks + 2 · symbols` positions. Inputs: `symbols` symbols from 1 to 8, `blanks − 1` zeros and
    `symbols + 1` markers 9. Targets: zeros, and at the last `symbols` positions the symbols. Every position counts in
    the loss, a mean of 10-class cross-entropies.

    Args:
        blanks: positions between the last symbol and the first that must be repeated, at least 1.
    """

    blanks: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, blanks=self.blanks)

    @property
    def vocabulary_size(self) -> int:
        return 10

    @property
    def length(self) -> int:
        return self.blanks + 2 * self.symbols

    @property
    def chance(self) -> float:
        """Of a guess that knows every blank and no symbol."""
        return self.symbols * math.log(8) / self.length

    def arranged(self, symbols: Tensor) -> Segment:
        """Inputs and targets, `(B, length)` each; the symbols are the answers."""

        def constant(value: int, length: int) -> Tensor:
            return symbols.new_full((len(symbols), length), value)

        inputs = (symbols, constant(_BLANK, self.blanks - 1), constant(_MARKER, self.symbols + 1))
        targets = torch.cat((constant(_BLANK, self.blanks + self.symbols), symbols), dim=1)
        return Segment(torch.cat(inputs, dim=1), targets, starts=True, answers=targets != _BLANK)


@dataclass(frozen=True, kw_only=True)
class Reversal(SymbolTask):
    """Read symbols and write them in reverse order (one of the algorithmic tasks of Dehghani et al. 2018,
    arXiv:1807.03819). Class 0 is never a target: it may start them."""

    has_source: ClassVar[bool] = True

    @property
    def vocabulary_size(self) -> int:
        return 9

    @property
    def length(self) -> int:
        return self.symbols

    @property
    def chance(self) -> float:
        """Of a guess that knows no symbol."""
        return math.log(8)

    def arranged(self, symbols: Tensor) -> Segment:
        """Sources and targets, `(B, symbols)` each."""
        return Segment(symbols, symbols.flip(1), starts=True)
