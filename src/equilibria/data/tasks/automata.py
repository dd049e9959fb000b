"""Cellular automata run to their fixed points: what an equilibrium computes, as a task."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from equilibria.data.batches import NO_TARGET, Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.base import SequenceTask
from equilibria.data.tasks.numbering import digits, distinct
from equilibria.data.tokenizers import Tokenizer, digit_tokenizer
from equilibria.data.yardsticks import frequencies
from equilibria.errors import UserError
from equilibria.ranges import whole

_TRIES = 16  # starts for each sequence


@dataclass(frozen=True, kw_only=True)
class CellularAutomaton(SequenceTask):
    """The fixed point of an elementary cellular automaton (Wolfram 1983) on a ring, told from where it starts.

    Inputs: the `width` bits of a start, 0 or 1, and `distractors` bits that mean nothing, 2 or 3. Targets: the bits of
    the fixed point; distractors have none. Rule 78 has come to rest after `width − 1` steps, from every start. Of
    another rule only starts count from which it rests within `4 · width` steps.

    No start of a training sequence is that of one held out, and no two sequences are the same. Where there are fewer
    starts than sequences, each split has its share of them, and they come again with other distractors.

    Args:
        rule: its number in Wolfram's code, 0 to 255.
        width: bits of the ring, at least 3.
        distractors: bits beside it.
        samples: training sequences.
        held_out: sequences for validation.
        seed: of starts and distractors.

    Raises:
        ValueError: a number outside its range.
        UserError: when used, if too few starts come to rest for so many sequences.
    """

    causal: ClassVar[bool] = False

    rule: int = 78
    width: int = 12
    distractors: int = 8
    samples: int = 4000  # pyright: ignore[reportIncompatibleMethodOverride]
    held_out: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        whole(3, width=self.width)
        whole(0, distractors=self.distractors)
        whole(1, samples=self.samples, held_out=self.held_out)
        whole(0, seed=self.seed)
        if not 0 <= self.rule <= 255:
            raise ValueError(f"rule must be between 0 and 255, found {self.rule}")

    @property
    def vocabulary_size(self) -> int:
        return 4 if self.distractors else 2

    @property
    def length(self) -> int:
        return self.width + self.distractors

    @property
    def grid(self) -> tuple[int, int]:
        return 1, self.length

    @property
    def count(self) -> int:
        return self.held_out + self.samples

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return digit_tokenizer(self.vocabulary_size)

    @property
    def name(self) -> str:
        return f"rule {self.rule} on {self.width} bits"

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Loss and accuracy of a guess that knows only how many bits of the fixed points are ones."""
        return frequencies(self.segment(np.arange(self.held_out)))

    def check_unseen(self, trained: SequenceTask) -> None:
        if isinstance(trained, CellularAutomaton) and self.width == trained.width:
            self.check_held_out_of(trained, "rule", "samples", "seed")  # samples decide the share of the splits

    def segment(self, numbers: np.ndarray) -> Segment:
        starts, ends, own = self._starts
        held = numbers < self.held_out
        count, number = np.where(held, own, len(starts) - own), np.where(held, numbers, numbers - self.held_out)
        again, place = np.divmod(number, count)
        place += np.where(held, 0, own)
        bits = digits(place, 2, self.length, self.seed, self.width)[:, self.width :]
        # Others for each time that a start comes, since what is added differs.
        bits ^= digits(again, 2, max(1, self.distractors), self.seed)[:, : self.distractors]
        inputs = np.concatenate([starts[place], 2 + bits], axis=1)
        targets = np.concatenate([ends[place], np.full_like(bits, NO_TARGET)], axis=1)
        found = torch.from_numpy(targets)
        return Segment(torch.from_numpy(inputs), found, starts=True, answers=found != NO_TARGET)

    @cached_property
    def _starts(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Different starts that come to rest, as many as there are sequences or as there are at all; where; and how
        many of them, the first, are for validation."""
        tried, found, most = 0, [], min(_TRIES * self.count, distinct(2, self.width))
        while tried < most and sum(len(starts) for starts, _ in found) < self.count:
            numbers = np.arange(tried, min(tried + self.count, most))
            starts = digits(numbers, 2, self.width, self.seed)
            ends, rests = settled(starts, self.rule, 4 * self.width)
            found.append((starts[rests], ends[rests]))
            tried += len(numbers)
        starts, ends = (np.concatenate(parts)[: self.count] for parts in zip(*found, strict=True))
        own = round(len(starts) * self.held_out / self.count)
        most = 2**self.distractors
        if self.held_out > own * most or self.samples > (len(starts) - own) * most:
            raise UserError(
                f"{self.name} comes to rest from {len(starts)} of {tried} starts, too few for {self.count} sequences; "
                f"give fewer samples, or more distractors"
            )
        return starts, ends, own


def settled(bits: np.ndarray, rule: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Rings of bits `(B, width)` after so many steps of a rule, and whether each rests there."""
    outcome = rule >> np.arange(8) & 1
    after = bits
    for _ in range(steps + 1):
        bits, after = after, outcome[4 * np.roll(after, 1, axis=1) + 2 * after + np.roll(after, -1, axis=1)]
        if (bits == after).all():
            break
    return bits, (bits == after).all(axis=1)
