"""Streams: every target once, rows that read on without a gap, segments that their index alone decides."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.batches import EvaluationStream, TrainingStream, ZipfBatches, check_tokens
from equilibria.errors import UserError

sizes = st.tuples(st.integers(2, 200), st.integers(1, 9), st.integers(1, 20))
training_sizes = sizes.filter(lambda size: size[0] > size[1] * size[2])


def positions(count: int) -> np.ndarray:
    """A text whose token ids are their own places, so that a segment tells where it was read."""
    return np.arange(count, dtype=np.uint16)


@given(sizes)
def test_evaluation_has_every_pair_of_the_text_exactly_once(size: tuple[int, int, int]) -> None:
    count, batch_size, segment_length = size
    stream = EvaluationStream(positions(count), batch_size, segment_length)
    pairs: Counter[tuple[int, int]] = Counter()
    segments = list(stream)
    for segment in segments:
        scored = segment.targets != -100
        pairs.update(zip(segment.inputs[scored].tolist(), segment.targets[scored].tolist(), strict=True))
    assert pairs == Counter((place, place + 1) for place in range(count - 1))
    assert pairs.total() == stream.targets == count - 1
    assert len(segments) == len(stream)
    assert [segment.starts for segment in segments] == [True] + [False] * (len(stream) - 1)


@given(sizes)
def test_evaluation_rows_read_on_and_waste_at_most_a_token_each(size: tuple[int, int, int]) -> None:
    count, batch_size, segment_length = size
    segments = list(EvaluationStream(positions(count), batch_size, segment_length))
    inputs = torch.cat([segment.inputs for segment in segments], dim=1)
    targets = torch.cat([segment.targets for segment in segments], dim=1)
    assert all(segment.inputs.shape[1] <= segment_length for segment in segments)
    assert inputs.shape[0] <= batch_size
    assert (inputs.diff(dim=1) == 1).all()
    assert ((targets == -100).sum(dim=1) <= 1).all()
    assert (targets[:, :-1] != -100).all()  # what is spare comes last


def test_evaluation_with_one_row_gives_every_token_all_its_context() -> None:
    segments = list(EvaluationStream(np.array([5, 6, 7, 8, 9]), batch_size=1, segment_length=3))
    assert [segment.inputs.tolist() for segment in segments] == [[[5, 6, 7]], [[8]]]
    assert [segment.targets.tolist() for segment in segments] == [[[6, 7, 8]], [[9]]]
    assert segments[0].inputs.dtype == segments[0].targets.dtype == torch.int64


@given(training_sizes, st.integers(0, 500))
def test_training_targets_follow_their_inputs_and_rows_read_on(size: tuple[int, int, int], index: int) -> None:
    count, batch_size, segment_length = size
    stream = TrainingStream(positions(count), batch_size, segment_length)
    segment = stream.at(index)
    assert segment.inputs.shape == segment.targets.shape == (batch_size, segment_length)
    assert segment.inputs.dtype == segment.targets.dtype == torch.int64
    assert (segment.targets == segment.inputs + 1).all()
    assert segment.targets.max() < count
    assert segment.starts == (index % len(stream) == 0)
    following = stream.at(index + 1)
    if not following.starts:
        assert (following.inputs[:, 0] == segment.targets[:, -1]).all()


@given(training_sizes, st.integers(0, 500))
def test_a_segment_is_a_function_of_its_index_alone(size: tuple[int, int, int], index: int) -> None:
    count, batch_size, segment_length = size
    used = TrainingStream(positions(count), batch_size, segment_length)
    for earlier in range(3):
        used.at(earlier)
    fresh = TrainingStream(positions(count), batch_size, segment_length)
    assert torch.equal(used.at(index).inputs, fresh.at(index).inputs)


@given(training_sizes)
def test_a_pass_reads_no_token_twice_and_leaves_out_few(size: tuple[int, int, int]) -> None:
    count, batch_size, segment_length = size
    stream = TrainingStream(positions(count), batch_size, segment_length)
    for number in range(3):
        read = torch.cat([stream.at(number * len(stream) + place).inputs for place in range(len(stream))]).flatten()
        assert len(read.unique()) == len(read)
        assert count - len(read) < batch_size * segment_length + segment_length + 1


def test_passes_see_other_boundaries_and_in_time_every_target() -> None:
    stream = TrainingStream(positions(1000), batch_size=3, segment_length=16)
    starts, targets = set(), set()
    for number in range(40):
        starts.add(int(stream.at(number * len(stream)).inputs[0, 0]))
        for place in range(len(stream)):
            targets.update(stream.at(number * len(stream) + place).targets.flatten().tolist())
    assert 0 in starts
    assert len({start % 16 for start in starts}) > 8
    assert targets == set(range(1, 1000))


def test_the_smallest_text_has_one_segment() -> None:
    stream = TrainingStream(positions(13), batch_size=3, segment_length=4)
    assert len(stream) == 1
    assert stream.at(7).inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(IndexError, match="segment -1"):
        stream.at(-1)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"12 tokens are too few for batch_size 3 .* \(13 needed\)"):
        TrainingStream(positions(12), 3, 4)
    with pytest.raises(UserError, match="nothing to predict"):
        EvaluationStream(positions(1), 3, 4)
    for stream in (TrainingStream, EvaluationStream):
        with pytest.raises(UserError, match="batch_size must be at least 1, found 0"):
            stream(positions(12), 0, 4)
        with pytest.raises(UserError, match="segment_length must be at least 1, found -1"):
            stream(positions(12), 1, -1)


def test_ids_outside_the_vocabulary_are_named_with_their_position() -> None:
    check_tokens(np.array([], np.int32), 5)
    check_tokens(np.array([0, 4], np.uint16), 5)
    with pytest.raises(UserError, match="token id 5 at position 1 is outside the vocabulary of 5"):
        check_tokens(np.array([4, 5, 9], np.uint16), 5)
    with pytest.raises(UserError, match="token id -1 at position 2"):
        check_tokens(np.array([0, 1, -1, 7], np.int32), 5)


@given(st.integers(1, 3000), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.integers(0, 9))
def test_random_batches_are_a_function_of_their_index(
    vocabulary: int, rows: int, length: int, seed: int, index: int
) -> None:
    segment = ZipfBatches(vocabulary, rows, length, seed).at(index)
    again = ZipfBatches(vocabulary, rows, length, seed).at(index)
    assert segment.inputs.shape == segment.targets.shape == (rows, length)
    assert torch.equal(segment.inputs, again.inputs)
    assert torch.equal(segment.inputs[:, 1:], segment.targets[:, :-1])
    assert 0 <= segment.inputs.min() <= segment.inputs.max() < vocabulary
    assert segment.starts == (index == 0)


def test_tokens_are_zipf_distributed() -> None:
    tokens = ZipfBatches(999, 40, 1000).at(0).inputs
    for below, share in ((9, 1 / 3), (99, 2 / 3), (999, 1)):
        assert (tokens < below).double().mean() == pytest.approx(share, abs=0.01)
    assert tokens.max() == 998
