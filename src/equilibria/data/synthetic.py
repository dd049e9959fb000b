"""Synthetic tasks: sequences made when they are asked for, each a pure function of its number.

A sequence's number goes through a bijection to its symbols, so that no training sequence ever repeats another or one
that is held out: disjoint by construction, not by luck.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from equilibria.data.batching import Segment
from equilibria.data.corpus import Split
from equilibria.data.tokenizers import DigitTokenizer
from equilibria.errors import UserError

_ALPHABET_BITS = 3
_BLANK, _MARKER = 0, 9
_LONGEST = 20  # symbols whose bits fit, three each, in a 64-bit number


@dataclass(frozen=True, kw_only=True)
class SymbolTask(ABC):
    """Something to do with symbols from 1 to 8.

    Args:
        symbols: how many, 1 to 20.
        held_out: sequences kept for validation; fewer than there are.
        seed: of the order in which the sequences come; another seed holds out others.
    """

    symbols: int = 10
    held_out: int = 2000
    seed: int = 0

    vocabulary_size: ClassVar[int]

    def __post_init__(self) -> None:
        if not 1 <= self.symbols <= _LONGEST:
            raise ValueError(f"symbols must be between 1 and {_LONGEST}, found {self.symbols}")
        if not 1 <= self.held_out < self.count:
            raise ValueError(f"held_out must be between 1 and {self.count - 1}, found {self.held_out}")

    @property
    def count(self) -> int:
        """How many different sequences there are."""
        return 8**self.symbols

    @property
    def name(self) -> str:
        """Of the class, in words."""
        return re.sub(r"(?<=.)([A-Z])", r" \1", type(self).__name__).lower()

    @property
    def tokenizer(self) -> DigitTokenizer:
        """A digit per class."""
        return DigitTokenizer()

    @property
    def fingerprint(self) -> str:
        """Sizes and seed, which say all."""
        return repr(self)

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of a sequence."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The least loss without memory, in nats."""

    def training(self, batch_size: int, segment_length: int | None = None) -> "SymbolBatches":
        """Batches of whole sequences to train on; none repeats a sequence before all have been seen."""
        return SymbolBatches(self, batch_size)

    def splits(self) -> tuple[Split, ...]:
        """`"valid"` alone."""
        return ("valid",)

    def split(self, name: Split) -> "HeldOut":
        """The sequences held out, which are the split `"valid"`.

        Raises:
            UserError: another split is asked for.
        """
        if name != "valid":
            raise UserError(f"{self.name} has no {name} split; it has valid")
        return HeldOut(self)

    def yardsticks(self, name: Split) -> dict[str, float]:
        """The least loss without memory."""
        return {"chance_loss": self.chance}

    def check(self, vocabulary_size: int) -> None:
        """Checks that a model has all classes.

        Raises:
            UserError: it has fewer.
        """
        if vocabulary_size < self.vocabulary_size:
            raise UserError(f"{self.name} has {self.vocabulary_size} classes, the model only {vocabulary_size}")

    def segment(self, numbers: np.ndarray) -> Segment:
        """The sequences of these numbers, 0 to `count − 1`, one per row."""
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


@dataclass(frozen=True, kw_only=True)
class CopyMemory(SymbolTask):
    """Repeat, at the end of a sequence, the symbols it began with (Hochreiter and Schmidhuber 1997; this form:
    Arjovsky et al. 2015, arXiv:1511.06464, and Bai et al. 2018, arXiv:1803.01271).

    A sequence has `blanks + 2 · symbols` positions. Inputs: `symbols` symbols from 1 to 8, `blanks − 1` zeros and
    `symbols + 1` markers 9. Targets: zeros, and at the last `symbols` positions the symbols. Every position counts in
    the loss, a mean of 10-class cross-entropies.

    Args:
        blanks: positions between the last symbol and the first that must be repeated, at least 1.
        symbols, held_out, seed: as for every task.
    """

    blanks: int = 400

    vocabulary_size: ClassVar[int] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blanks < 1:
            raise ValueError(f"blanks must be at least 1, found {self.blanks}")

    @property
    def length(self) -> int:
        """Positions of a sequence."""
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
        targets = (constant(_BLANK, self.blanks + self.symbols), symbols)
        wanted = torch.cat(targets, dim=1)
        return Segment(torch.cat(inputs, dim=1), wanted, starts=True, answers=wanted != _BLANK)


@dataclass(frozen=True, kw_only=True)
class Reversal(SymbolTask):
    """Read symbols and write them in reverse order, for models that read a source and write a target (one of the
    algorithmic tasks of Dehghani et al. 2018, arXiv:1807.03819). Class 0 is never a target: it may start them."""

    vocabulary_size: ClassVar[int] = 9

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.symbols

    @property
    def chance(self) -> float:
        """Ignorant of every symbol."""
        return math.log(8)

    def arranged(self, symbols: Tensor) -> Segment:
        """Sources and targets, `(B, symbols)` each."""
        return Segment(symbols, symbols.flip(1), starts=True)


@dataclass(frozen=True)
class HeldOut:
    """The sequences that a task keeps for validation."""

    task: SymbolTask

    def segments(
        self, batch_size: int, segment_length: int | None = None, max_tokens: int | None = None
    ) -> Iterator[Segment]:
        """One pass over them, whole, or over the first batches: until `max_tokens` targets have come.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        come = 0
        for first in range(0, self.task.held_out, batch_size):
            if max_tokens is not None and come >= max_tokens:
                return
            segment = self.task.segment(np.arange(first, min(first + batch_size, self.task.held_out)))
            come += segment.targets.numel()
            yield segment


class SymbolBatches:
    """Training batches of a task by index: resuming needs the index alone.

    Args:
        task: what to make.
        batch_size: sequences per batch.
    """

    def __init__(self, task: SymbolTask, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        self._task, self._batch_size = task, batch_size

    def at(self, index: int, rows: Sequence[int] | None = None) -> Segment:
        """The batch of that index, counted from 0; of it, the rows of these numbers alone, all when None.

        Raises:
            IndexError: the index is negative.
        """
        if index < 0:
            raise IndexError(f"batch {index}: batches count from 0")
        drawn = index * self._batch_size + (np.arange(self._batch_size) if rows is None else np.asarray(rows))
        return self._task.segment(self._task.held_out + drawn % (self._task.count - self._task.held_out))
