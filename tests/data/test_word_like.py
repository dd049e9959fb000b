import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.word_like import WordLike


@given(st.integers(1, 3000), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
def test_batches_are_a_function_of_their_index(vocabulary: int, rows: int, length: int, seed: int, index: int) -> None:
    segment = WordLike(vocabulary, rows, length, seed).at(index)
    again = WordLike(vocabulary, rows, length, seed).at(index)
    assert segment.inputs.shape == segment.targets.shape == (rows, length)
    assert torch.equal(segment.inputs, again.inputs)
    assert torch.equal(segment.inputs[:, 1:], segment.targets[:, :-1])
    assert 0 <= segment.inputs.min() <= segment.inputs.max() < vocabulary
    assert segment.starts == (index == 0)


def test_tokens_are_as_unequal_as_words() -> None:
    tokens = WordLike(999, 40, 1000).at(0).inputs
    for below, share in ((9, 1 / 3), (99, 2 / 3), (999, 1)):
        assert (tokens < below).double().mean() == pytest.approx(share, abs=0.01)
    assert tokens.max() == 998
