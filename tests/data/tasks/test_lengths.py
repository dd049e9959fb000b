"""Sequences at other lengths than those trained: what stays held out, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import HopInduction, WordProblem
from equilibria.data.tasks.lengths import VariableLengthTask
from equilibria.errors import UserError

TASKS = st.sampled_from([WordProblem(group="Z2", held_out=4), HopInduction(alphabet=3, length=16, held_out=4)])
LENGTHS = st.integers(5, 12)


def beginnings(task: VariableLengthTask, length: int) -> tuple[set, set]:
    """Of at most so many positions: of all that training may read, and of all that is held out."""
    stream, rest = task.training(64), task.count - task.held_out
    trained = [stream.at(index).inputs for index in range(-(-rest // 64))]
    held = [segment.inputs for segment in task.split("valid").segments(64)]
    first, second = ({tuple(row[:length]) for part in parts for row in part.tolist()} for parts in (trained, held))
    return first, second


@settings(deadline=None, max_examples=60)
@given(TASKS, LENGTHS, st.none() | LENGTHS, LENGTHS, st.none() | LENGTHS, st.integers(1, 8), st.integers(0, 1))
def test_what_is_evaluated_was_never_trained_on(
    task: VariableLengthTask,
    length: int,
    valid: int | None,
    other_length: int,
    other_valid: int | None,
    held_out: int,
    seed: int,
) -> None:
    trained = replace(task, length=length, valid_length=valid)
    other = replace(task, length=other_length, valid_length=other_valid, held_out=held_out, seed=seed)
    same = (trained.told_apart, 0) == (other.told_apart, seed)
    if not same or held_out > trained.held_out:
        with pytest.raises(UserError, match="may have been trained on; give"):
            other.check_unseen(trained)
        return
    other.check_unseen(trained)
    seen, kept = beginnings(trained, trained.told_apart)[0], beginnings(other, trained.told_apart)[1]
    assert len(kept) == held_out
    assert not seen & kept


def test_the_words_of_a_run_are_read_at_every_longer_length() -> None:
    trained = WordProblem(length=16, valid_length=64, held_out=256)
    (words,) = trained.split("valid").segments(256)
    for length in (16, 17, 64, 1000, 10_000):
        longer = replace(trained, valid_length=length, held_out=32)
        longer.check_unseen(trained)
        (read,) = longer.split("valid").segments(32)
        common = min(64, length)
        assert read.inputs[:, :common].tolist() == words.inputs[:32, :common].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 257}, "held_out = 257: all sequences but the first 256 may have been trained on; give at most"),
        ({"seed": 1}, "seed = 1: other sequences would be held out than in training, with seed = 0"),
        ({"valid_length": 9}, "the shorter of length and valid_length is 9, and was 16 in training: .* give 16"),
        ({"length": 32}, "the shorter of length and valid_length is 31, and was 16 in training"),
    ],
)
def test_what_may_have_been_trained_on_is_said(changes: dict[str, int], message: str) -> None:
    trained = WordProblem(group="Z2", length=16, valid_length=31)
    with pytest.raises(UserError, match=message):
        replace(trained, **changes).check_unseen(trained)


@settings(deadline=None, max_examples=20)
@given(TASKS, st.integers(2, 8), st.integers(0, 20), st.integers(1, 60), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_longest_sequence_grows_with_the_batches(
    task: VariableLengthTask, shortest: int, staying: int, growing: int, power: float
) -> None:
    plain = replace(task, shortest=shortest)
    growing_task = replace(plain, staying=staying, growing=growing, growth_power=power)
    for index in range(90):
        length = growing_task.training(1).at(index).inputs.shape[1]
        if index < staying:
            assert length == shortest
        elif index < staying + growing:
            share = ((index - staying) / growing) ** power
            assert shortest <= length <= shortest + round((16 - shortest) * share)
        else:
            assert length == plain.training(1).at(index).inputs.shape[1]


def test_sequences_that_stay_short_are_drawn_from_all_lengths_at_once_after() -> None:
    task = WordProblem(group="Z2", shortest=3, staying=40)
    lengths = [task.training(1).at(index).inputs.shape[1] for index in range(140)]
    assert {*lengths[:40]} == {3}
    assert max(lengths[40:60]) > 12


def test_few_sequences_come_again_in_each_pass() -> None:
    for task in (WordProblem(samples=20), HopInduction(samples=20)):
        rows = [tuple(row) for index in range(4) for row in task.training(10).at(index).inputs.tolist()]
        assert {*rows[:20]} == {*rows[20:]}
        assert len({*rows}) == 20
        assert rows[:20] != rows[20:]
