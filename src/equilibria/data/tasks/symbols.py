"""What the tasks on sequences of symbols have in common.

A sequence's number goes through a bijection to its symbols: sequences are disjoint by construction, not by luck.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.base import SequenceTask
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer

_ALPHABET_BITS = 3
_LONGEST = 20  # symbols whose bits fit, three each, in a 64-bit number


@dataclass(frozen=True, kw_only=True)
class SymbolTask(SequenceTask):
    """Something to do with symbols from 1 to 8.

    Args:
        symbols: how many, 1 to 20.
        held_out: sequences kept for validation; fewer than there are.
        seed: of the order in which the sequences come; another seed holds out others.

    Raises:
        ValueError: a number outside its range.
    """

    symbols: int = 10
    held_out: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.symbols <= _LONGEST:
            raise ValueError(f"symbols must be between 1 and {_LONGEST}, found {self.symbols}")
        if not 1 <= self.held_out < self.count:
            raise ValueError(f"held_out must be between 1 and {self.count - 1}, found {self.held_out}")

    @property
    def count(self) -> int:
        return 8**self.symbols

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """A digit per class."""
        return digit_tokenizer()

    @property
    @abstractmethod
    def chance(self) -> float:
        """The least loss without memory, in nats."""

    def yardsticks(self, name: Split) -> dict[str, float]:
        """The least loss without memory."""
        return {"chance_loss": self.chance}

    def segment(self, numbers: np.ndarray) -> Segment:
        return self.arranged(torch.from_numpy(self._symbols(numbers)))

    @abstractmethod
    def arranged(self, symbols: Tensor) -> Segment:
        """What is to be done with `(B, symbols)` symbols."""

    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        """(B,) numbers to (B, symbols) symbols: multiplying by an odd number and folding the upper bits onto the lower
        are bijections of the numbers of so many bits."""
        bits = _ALPHABET_BITS * self.symbols
        mask = np.uint64(2**bits - 1)
        x = numbers.astype(np.uint64)
        for multiplier, summand in np.random.default_rng(self.seed).integers(0, 2**62, (4, 2), dtype=np.uint64):
            x = (x * (multiplier | np.uint64(1)) + summand) & mask  # modulo 2^64 first, which 2^bits divides
            x ^= x >> np.uint64(bits // 2 + 1)
        digits = x[:, None] >> np.arange(0, bits, _ALPHABET_BITS, dtype=np.uint64)
        return (digits & np.uint64(7)).astype(np.int64) + 1
