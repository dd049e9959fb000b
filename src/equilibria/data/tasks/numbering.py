"""From the number of a sequence to what is in it: numbers that differ make sequences that differ."""

import math

import numpy as np

_SEEDS, _PLACES = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, far from each other's multiples
_LARGEST = 2**31  # of the numbers, so that products of two fit 64 bits


def distinct(base: int, length: int) -> int:
    """How many numbers `digits` tells apart: all rows of digits, where there are not too many for a number."""
    return base ** _head(base, length)


def digits(numbers: np.ndarray, base: int, length: int, seed: int, told_apart: int | None = None) -> np.ndarray:
    """Rows of digits, `(B,) → (B, length)`, each below `base`, as if drawn at random.

    Two numbers differ in the first digits, of which `distinct` counts the possible ones: those are a bijection of the
    number. The others are drawn by it.

    Args:
        numbers: each from 0 to `distinct(base, told_apart) − 1`.
        base: of the digits, at least 2.
        length: digits of a row.
        seed: of the order of the rows.
        told_apart: digits among which numbers are told apart; all when None. A row is the beginning of a longer one
            of the same number where this is the same for both.
    """
    head = _head(base, length if told_apart is None else told_apart)
    count, generator = base**head, np.random.default_rng(seed)
    factor, summand = (int(drawn) for drawn in generator.integers(1, count, 2))
    while math.gcd(factor, count) > 1:
        factor += 1
    place = (numbers.astype(np.int64) % count * factor + summand) % count
    rows = np.empty((len(numbers), max(head, length)), dtype=np.int64)
    for digit in range(head):
        # Moved by a hash of the digits above it: still a bijection, without the pattern of multiples.
        place, lowest = np.divmod(place, base)
        rows[:, digit] = (lowest + hashed(seed, digit, place) % base) % base
    for digit in range(head, length):
        rows[:, digit] = hashed(seed, digit, numbers) % base
    return rows[:, :length]


def _head(base: int, length: int) -> int:
    """How many digits, at least one, have so few values together that products of their numbers fit."""
    return max(1, min(length, math.floor(math.log(_LARGEST) / math.log(base) + 1e-9)))


def drawn(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of integers below 2^62, `(B,) → (B, count)`, as if drawn anew for each number and place in its row."""
    places = np.uint64(seed * _SEEDS % 2**64) + np.arange(count, dtype=np.uint64) * np.uint64(_PLACES)
    return _mixed(numbers.astype(np.uint64)[:, None] + places)


def hashed(seed: int, place: int, values: np.ndarray) -> np.ndarray:
    """Integers below 2^62, as if drawn anew for each value."""
    return _mixed(values.astype(np.uint64) + np.uint64((seed * _SEEDS + place * _PLACES) % 2**64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The end of SplitMix64 (Steele, Lea and Flood 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
    return ((x ^ x >> np.uint64(31)) >> np.uint64(2)).astype(np.int64)
