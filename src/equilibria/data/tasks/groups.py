"""Word problems of groups: what a network must do to follow a state (Merrill, Petty and Sabharwal 2024,
arXiv:2404.08819).

Read elements `g₁ … g_t` of a group and say their product at every position. A network of fixed depth does this for
groups such as Z60 to any length, and for those that are not solvable, such as A5 and S5, only to a length that grows
with its depth, unless TC⁰ is as large as NC¹. The group Z2 is parity, or prefix sums (Schwarzschild et al. 2021,
arXiv:2106.04537).
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch

from equilibria.data.batches import Segment
from equilibria.data.sources.base import Split
from equilibria.data.tasks.base import SequenceTask
from equilibria.data.tasks.numbering import digits, distinct
from equilibria.ranges import at_least

_LARGEST_ORDER = 1000


@dataclass(frozen=True, kw_only=True)
class WordProblem(SequenceTask):
    """The product of the elements so far, at every position; all of them count in the loss and as answers.

    Args:
        group: `"Z"` and a number, the integers modulo it, added; `"S"` or `"A"` and a number, the permutations of so
            many things or the even ones, each applied after those before it.
        length: elements of a word.
        shortest: of the words of a training batch, whose length is drawn for it from here to `length`; `length`
            itself when None.
        growing: first training batches in which the longest word grows from `shortest` to `length`; none of them
            when None.
        valid_length: of the words for validation; `length` when None.
        held_out: words kept for validation. No word of training is one of them; of a length not below the shorter of
            `length` and `valid_length`, none begins like one of them.
        seed: of the order of the words; another seed holds out others.

    Raises:
        ValueError: no such group, or a number outside its range.
    """

    group: str = "S3"
    length: int = 16  # pyright: ignore[reportIncompatibleMethodOverride]
    shortest: int | None = None
    growing: int | None = None
    valid_length: int | None = None
    held_out: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, length=self.length, shortest=self.shortest, growing=self.growing, valid_length=self.valid_length)
        if self.shortest is not None and self.shortest > self.length:
            raise ValueError(f"shortest = {self.shortest}: expected at most length, {self.length}")
        order_of(self.group)
        self.check_count()

    @property
    def vocabulary_size(self) -> int:
        return order_of(self.group)

    @property
    def count(self) -> int:
        return distinct(self.vocabulary_size, self._told_apart)

    @property
    def name(self) -> str:
        return f"word problem of {self.group}"

    @property
    def validated(self) -> int:
        """Elements of a word for validation."""
        return self.length if self.valid_length is None else self.valid_length

    def yardsticks(self, name: Split) -> dict[str, float]:
        """Of who knows of a word no more than its latest element: loss, and share of right answers."""
        unknown, order = (self.validated - 1) / self.validated, self.vocabulary_size
        return {"chance_loss": unknown * math.log(order), "chance_accuracy": 1.0 - unknown * (1.0 - 1.0 / order)}

    def segment(self, numbers: np.ndarray) -> Segment:
        return self._words(numbers, self.validated)

    def training_segment(self, numbers: np.ndarray, index: int) -> Segment:
        if self.shortest is None:
            return self._words(numbers, self.length)
        longest = self.length
        if self.growing is not None and index < self.growing:
            longest = self.shortest + round((self.length - self.shortest) * index / self.growing)
        drawn = np.random.default_rng((self.seed, index)).integers(self.shortest, longest, endpoint=True)
        return self._words(numbers, int(drawn))

    @property
    def _told_apart(self) -> int:
        return min(self.length, self.validated)

    def _words(self, numbers: np.ndarray, length: int) -> Segment:
        words = digits(numbers, self.vocabulary_size, length, self.seed, self._told_apart)
        products, table = np.empty_like(words), multiplication(self.group)
        product = np.zeros(len(words), dtype=np.int64)
        for position in range(length):
            product = table[product, words[:, position]]
            products[:, position] = product
        targets = torch.from_numpy(products)
        return Segment(
            torch.from_numpy(words), targets, starts=True, answers=torch.ones_like(targets, dtype=torch.bool)
        )


def order_of(group: str) -> int:
    """How many elements a group has; raises ValueError for what is none of those known."""
    kind, number = _named(group)
    order = number if kind == "Z" else math.factorial(number) // (2 if kind == "A" else 1)
    if not 2 <= order <= _LARGEST_ORDER:
        raise ValueError(f"group = {group!r} has {order} elements: expected from 2 to {_LARGEST_ORDER}")
    return order


@lru_cache
def multiplication(group: str) -> np.ndarray:
    """`(n, n)` integers: the number of the product of two elements. Element 0 is the neutral one."""
    kind, number = _named(group)
    if kind == "Z":
        return np.add.outer(np.arange(number), np.arange(number)) % number
    elements = [one for one in permutations(range(number)) if kind == "S" or _is_even(one)]
    numbers = {one: place for place, one in enumerate(elements)}
    # First the one, then the other.
    return np.array([[numbers[tuple(other[i] for i in one)] for other in elements] for one in elements])


def _named(group: str) -> tuple[str, int]:
    found = re.fullmatch(r"([ZSA])([1-9]\d{0,3})", group)
    if found is None or (found[1] != "Z" and int(found[2]) > 9):
        raise ValueError(f'group = {group!r}: expected Z, S or A and a number, such as "Z60", "S3" or "A5"')
    return found[1], int(found[2])


def _is_even(permutation: tuple[int, ...]) -> bool:
    later = (other < one for place, one in enumerate(permutation) for other in permutation[place:])
    return sum(later) % 2 == 0
