"""N-gram yardsticks: distributions that sum to 1, and figures worked out another way."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data.yardsticks import Trigram, _discounts, trigram_perplexity, unigram_perplexity
from equilibria.errors import UserError


def text(length: int, vocabulary_size: int, seed: int = 0) -> np.ndarray:
    """Tokens with a skewed distribution in which each depends on the one before it."""
    generator = np.random.default_rng(seed)
    steps = generator.geometric(0.5, size=length)
    return (np.cumsum(steps) % vocabulary_size).astype(np.uint16)


def test_unigram_is_the_smoothed_frequency() -> None:
    train, valid = np.array([0, 0, 1]), np.array([1, 0, 2])
    assert unigram_perplexity(train, valid, 4) == pytest.approx((3 / 7 * 1 / 7) ** -0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 11), min_size=3, max_size=300))
def test_probabilities_sum_to_one_in_every_context(vocabulary_size: int, ids: list[int]) -> None:
    train = np.array(ids) % vocabulary_size
    model = Trigram(train, vocabulary_size)
    before, last, word = (grid.ravel() for grid in np.meshgrid(*[np.arange(vocabulary_size)] * 3, indexing="ij"))
    for probability in (model.probability(before, last, word), model.bigram_probability(last, word)):
        assert (probability > 0).all()
        np.testing.assert_allclose(probability.reshape(-1, vocabulary_size).sum(axis=1), 1, rtol=1e-12)


def by_definition(train: list[int], size: int, before: int, last: int, word: int) -> float:
    """Interpolated Kneser-Ney as the paper writes it, with dictionaries and loops."""
    counts = Counter(zip(train, train[1:], train[2:], strict=False))
    levels: list[Counter] = [counts]
    for _ in range(2):
        levels.append(Counter(gram[1:] for gram in levels[-1]))
    probability = 1 / size
    for level, history in zip(reversed(levels), [(), (last,), (before, last)], strict=True):
        discounts = _discounts(np.array(list(level.values())))
        following: dict[tuple, dict[int, int]] = defaultdict(dict)
        for gram, count in level.items():
            following[gram[:-1]][gram[-1]] = count
        if words := following.get(history):
            total = sum(words.values())
            left = sum(discounts[min(count, 3)] for count in words.values()) / total
            seen = words.get(word, 0)
            probability = (seen - discounts[min(seen, 3)]) / total + left * probability
    return probability


def test_trigram_agrees_with_the_definition() -> None:
    size, train = 7, text(400, 7)
    model = Trigram(train, size)
    before, last, word = (np.array(column) for column in np.random.default_rng(1).integers(0, size, (3, 200)))
    expected = [by_definition(train.tolist(), size, *gram) for gram in zip(before, last, word, strict=True)]
    np.testing.assert_allclose(model.probability(before, last, word), expected, rtol=1e-12)


def test_trigram_perplexity_is_over_every_target() -> None:
    size, train, valid = 7, text(400, 7), text(5, 7, seed=3)
    model = Trigram(train, size)
    ids = valid.astype(np.int64)
    probabilities = [float(model.bigram_probability(ids[0:1], ids[1:2])[0])]
    probabilities += [
        float(model.probability(ids[i - 2 : i - 1], ids[i - 1 : i], ids[i : i + 1])[0]) for i in (2, 3, 4)
    ]
    expected = np.prod(probabilities) ** -0.25
    assert trigram_perplexity(train, valid, size) == pytest.approx(expected)


def test_context_helps_where_the_text_has_any() -> None:
    train, valid = text(20_000, 50), text(2_000, 50, seed=1)
    assert trigram_perplexity(train, valid, 50) < 0.2 * unigram_perplexity(train, valid, 50)
    noise = np.random.default_rng(0).integers(0, 50, 20_000)
    assert trigram_perplexity(noise, noise[::-1][:2000].copy(), 50) > 40


def test_discounts_are_those_of_the_paper() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [60, 20, 10, 5, 2])
    common = 60 / (60 + 2 * 20)
    expected = [0, 1 - 2 * common * 20 / 60, 2 - 3 * common * 10 / 20, 3 - 4 * common * 5 / 10]
    np.testing.assert_allclose(_discounts(counts), expected)


def test_large_vocabularies_do_not_overflow() -> None:
    size = 2_000_000
    train = np.array([size - 1, size - 2, size - 1, size - 2, size - 1] * 3)
    assert 1 < trigram_perplexity(train, train, size) < 10


def test_impossible_input_is_named() -> None:
    ids = np.array([0, 1, 2, 3])
    for perplexity in (unigram_perplexity, trigram_perplexity):
        with pytest.raises(UserError, match="token id 3 at position 3 is outside the vocabulary of 3"):
            perplexity(ids, ids, 3)
        with pytest.raises(UserError, match="got 4 and 1"):
            perplexity(ids, ids[:1], 4)
    with pytest.raises(UserError, match="needs 3 training"):
        trigram_perplexity(ids[:2], ids, 4)
    with pytest.raises(UserError, match="too large for n-grams"):
        trigram_perplexity(ids, ids, 3_000_000)
