"""What a trained model is compared with: n-gram models of a text, and how frequent the answers of a task are.

N-gram models raise a UserError for too few tokens, ids outside the vocabulary, or too large a vocabulary for trigrams.
"""

from dataclasses import dataclass

import numpy as np

from equilibria.data.batches import NO_TARGET, Segment, check_tokens
from equilibria.errors import UserError

_LARGEST_VOCABULARY = 2_000_000  # three ids must fit into 63 bits


def unigram_perplexity(train: np.ndarray, valid: np.ndarray, vocabulary_size: int) -> float:
    """Perplexity per token on `valid[1:]`, the targets of a language model, of the frequencies in `train` plus one."""
    _check(train, valid, vocabulary_size, smallest=1)
    counts = np.bincount(train, minlength=vocabulary_size) + 1.0
    return _perplexity(counts[valid[1:]] / counts.sum())


def trigram_perplexity(train: np.ndarray, valid: np.ndarray, vocabulary_size: int) -> float:
    """Perplexity per token of a `Trigram` of `train` on `valid[1:]`; the first has one token of context."""
    _check(train, valid, vocabulary_size, smallest=3)
    model = Trigram(train, vocabulary_size)
    ids = valid.astype(np.int64)
    first = model.bigram_probability(ids[:1], ids[1:2])
    return _perplexity(np.concatenate([first, model.probability(ids[:-2], ids[1:-1], ids[2:])]))


def frequencies(segment: Segment) -> dict[str, float]:
    """Of who knows of the answers no more than how frequent their classes are, and all other targets: the loss per
    target, and the share of right answers."""
    answers = segment.targets[segment.targets != NO_TARGET if segment.answers is None else segment.answers]
    share = np.unique(answers.numpy(), return_counts=True)[1] / len(answers)
    targets = int((segment.targets != NO_TARGET).sum())
    loss = -float((share * np.log(share)).sum()) * len(answers) / targets
    return {"chance_loss": loss, "chance_accuracy": float(share.max())}


class Trigram:
    """Interpolated Kneser-Ney with three discounts per order (Chen and Goodman, 1998, section 3).

    The lowest order is interpolated with the uniform distribution, so every probability is above zero.
    """

    def __init__(self, train: np.ndarray, vocabulary_size: int) -> None:
        _check(train, train, vocabulary_size, smallest=3)
        self._size = vocabulary_size
        ids = train.astype(np.int64)
        trigrams, counts = np.unique((ids[:-2] * self._size + ids[1:-1]) * self._size + ids[2:], return_counts=True)
        # Below the highest order a word counts once for each different word before it, not per occurrence.
        bigrams, bigram_counts = np.unique(trigrams % self._size**2, return_counts=True)
        unigrams, unigram_counts = np.unique(bigrams % self._size, return_counts=True)
        self._trigram = _Ngrams.of(trigrams, counts, self._size)
        self._bigram = _Ngrams.of(bigrams, bigram_counts, self._size)
        self._unigram = _Ngrams.of(unigrams, unigram_counts, self._size)

    def probability(self, before: np.ndarray, last: np.ndarray, word: np.ndarray) -> np.ndarray:
        """P(word | before, last), float64, elementwise over int64 arrays of one shape."""
        lower = self.bigram_probability(last, word)
        return self._trigram.interpolate(before * self._size + last, word, lower)

    def bigram_probability(self, last: np.ndarray, word: np.ndarray) -> np.ndarray:
        """P(word | last), the distribution that the trigram falls back on."""
        uniform = np.full(word.shape, 1.0 / self._size)
        lower = self._unigram.interpolate(np.zeros_like(word), word, uniform)
        return self._bigram.interpolate(last, word, lower)


@dataclass(frozen=True)
class _Ngrams:
    """Discounted probabilities of the n-grams seen, and what each context leaves for the order below."""

    size: int
    grams: np.ndarray  # sorted keys: context * size + word
    kept: np.ndarray  # (count - discount) / count of the context
    contexts: np.ndarray  # sorted
    left: np.ndarray  # sum of discounts / count of the context

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, size: int) -> "_Ngrams":
        discount = _discounts(counts)[np.minimum(counts, 3)]
        contexts, place = np.unique(grams // size, return_inverse=True)
        total = np.bincount(place, weights=counts)
        left = np.bincount(place, weights=discount) / total
        return cls(size, grams, (counts - discount) / total[place], contexts, left)

    def interpolate(self, context: np.ndarray, word: np.ndarray, lower: np.ndarray) -> np.ndarray:
        kept = _look_up(self.grams, self.kept, context * self.size + word, missing=0.0)
        left = _look_up(self.contexts, self.left, context, missing=1.0)
        return kept + left * lower


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and of 3 or more."""
    seen = np.bincount(np.minimum(counts, 5), minlength=5).astype(np.float64)  # n-grams seen 1, 2, 3, 4 times
    if seen[1:5].min() == 0:
        return np.array([0.0, 0.5, 0.75, 0.75])  # too little text to estimate them
    common = seen[1] / (seen[1] + 2 * seen[2])
    times = np.arange(1, 4)
    estimated = times - (times + 1) * common * seen[2:5] / seen[1:4]
    # Something must remain for what was never seen, and no more be taken than there was.
    return np.concatenate([[0.0], np.clip(estimated, 0.1, times)])


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)


def _perplexity(probabilities: np.ndarray) -> float:
    return float(np.exp(-np.log(probabilities).mean()))


def _check(train: np.ndarray, valid: np.ndarray, vocabulary_size: int, smallest: int) -> None:
    if len(train) < smallest or len(valid) < 2:
        found = f"got {len(train)} and {len(valid)}"
        raise UserError(f"an n-gram model needs {smallest} training and 2 validation tokens, {found}; give more text")
    if vocabulary_size > _LARGEST_VOCABULARY:
        raise UserError(f"a vocabulary of {vocabulary_size} is too large for n-grams; {_LARGEST_VOCABULARY} at most")
    check_tokens(train, vocabulary_size)
    check_tokens(valid, vocabulary_size)
