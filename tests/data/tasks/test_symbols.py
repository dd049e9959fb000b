import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import CopyMemory, Reversal
from equilibria.errors import UserError


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_sequences_are_those_of_the_papers(blanks: int, symbols: int, rows: int, seed: int) -> None:
    task = CopyMemory(blanks=blanks, symbols=symbols, held_out=1, seed=seed)
    segment = task.training(rows).at(3)
    assert task.length == blanks + 2 * symbols
    assert segment.inputs.shape == segment.targets.shape == (rows, task.length)
    assert segment.inputs.dtype == segment.targets.dtype == torch.int64
    assert segment.starts
    for given_row, wanted_row in zip(segment.inputs.tolist(), segment.targets.tolist(), strict=True):
        copied = given_row[:symbols]
        assert all(1 <= symbol <= 8 for symbol in copied)
        assert given_row[symbols:] == [0] * (blanks - 1) + [9] * (symbols + 1)
        assert wanted_row == [0] * (blanks + symbols) + copied


def test_the_paper_has_four_hundred_blanks_and_this_chance() -> None:
    task = CopyMemory()
    assert (task.blanks, task.symbols, task.length, task.held_out) == (400, 10, 420, 2000)
    assert task.chance == pytest.approx(0.0495, abs=5e-5)
    segment = next(iter(task.split("valid").segments(50)))
    # Certain of the blanks, without an idea of the symbols: that is what chance means.
    logits = torch.full((50, 420, 10), -math.inf)
    logits[:, :410, 0], logits[:, 410:, 1:9] = 0.0, 0.0
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), segment.targets.flatten())
    assert loss.item() == pytest.approx(task.chance, rel=1e-5)


def test_the_answers_are_the_symbols_that_must_be_repeated() -> None:
    segment = CopyMemory(blanks=7, symbols=4).training(3).at(0)
    assert segment.answers is not None
    assert segment.answers.tolist() == [[False] * 11 + [True] * 4] * 3
    assert Reversal().training(3).at(0).answers is None


def test_reading_stops_after_the_batch_that_makes_up_the_tokens() -> None:
    held = CopyMemory(blanks=7, symbols=4, held_out=30).split("valid")
    for tokens, sizes in ((None, [8, 8, 8, 6]), (1, [8]), (120, [8]), (121, [8, 8]), (10**6, [8, 8, 8, 6])):
        assert [len(segment.inputs) for segment in held.segments(8, max_tokens=tokens)] == sizes
    with pytest.raises(UserError, match="copy memory has no train split; it has valid"):
        CopyMemory().split("train")


def test_what_a_task_says_of_itself() -> None:
    one, other = CopyMemory(blanks=3), CopyMemory(blanks=4)
    assert (one.name, Reversal().name) == ("copy memory", "reversal")
    assert one.fingerprint == CopyMemory(blanks=3).fingerprint != other.fingerprint
    assert one.yardsticks("valid") == {"chance_loss": one.chance}
    assert Reversal().chance == pytest.approx(math.log(8))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_no_sequence_comes_twice_before_all_have_come(seed: int) -> None:
    task = CopyMemory(blanks=2, symbols=3, held_out=100, seed=seed)
    stream = task.training(7)
    batches = math.ceil((task.count - 100) / 7)
    seen = [tuple(row) for index in range(batches) for row in stream.at(index).inputs[:, :3].tolist()]
    held = [tuple(row) for segment in task.split("valid").segments(32) for row in segment.inputs[:, :3].tolist()]
    assert len(held) == len(set(held)) == 100
    first = seen[: task.count - 100]
    assert len(set(first)) == task.count - 100
    assert not set(first) & set(held)
    assert not set(seen) & set(held)  # nor after that


def test_symbols_are_spread_evenly_and_independently() -> None:
    task = CopyMemory(blanks=1)
    symbols = np.concatenate([task.training(1000).at(index).inputs[:, :10].numpy() for index in range(40)])
    # 40,000 draws: the share of a symbol, or of a pair, strays from its probability by six deviations at most.
    for place in range(10):
        shares = np.bincount(symbols[:, place], minlength=9)[1:] / 40_000
        assert np.abs(shares - 1 / 8).max() < 6 * math.sqrt(1 / 8 * 7 / 8 / 40_000)
    for one in range(10):
        for other in range(one):
            pairs = np.bincount(8 * (symbols[:, one] - 1) + symbols[:, other] - 1, minlength=64) / 40_000
            assert np.abs(pairs - 1 / 64).max() < 6 * math.sqrt(1 / 64 * 63 / 64 / 40_000)


def test_a_batch_is_a_function_of_its_index_and_the_seed() -> None:
    one, again, other = (CopyMemory(seed=seed).training(4) for seed in (1, 1, 2))
    list(islice((one.at(index) for index in range(9)), 5))
    assert torch.equal(one.at(7).inputs, again.at(7).inputs)
    assert not torch.equal(one.at(7).inputs, one.at(8).inputs)
    assert not torch.equal(one.at(7).inputs, other.at(7).inputs)


def test_more_blanks_are_fine_and_other_symbols_held_out_are_not() -> None:
    trained = CopyMemory(blanks=5, symbols=3, held_out=50)
    for fine in ({"blanks": 9, "held_out": 20}, {"symbols": 4, "held_out": 500, "seed": 2}):
        replace(trained, **fine).check_unseen(trained)
    for changes in ({"held_out": 51}, {"seed": 1, "blanks": 9}):
        with pytest.raises(UserError, match="may have been trained on"):
            replace(trained, **changes).check_unseen(trained)


def test_validation_is_one_pass_over_what_is_held_out() -> None:
    rows = [len(segment.inputs) for segment in CopyMemory(held_out=100).split("valid").segments(32)]
    assert rows == [32, 32, 32, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blanks": 0}, "blanks must be at least 1, found 0"),
        ({"symbols": 1001}, "symbols must be between 1 and 1000, found 1001"),
        ({"symbols": 2, "held_out": 64}, "held_out must be between 1 and 63, found 64"),
    ],
)
def test_impossible_sizes_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CopyMemory(**arguments)
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        CopyMemory().training(0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        CopyMemory().split("valid").segments(0)
    with pytest.raises(IndexError, match="batch -1"):
        CopyMemory().training(1).at(-1)


def test_reversal_reverses_the_same_sequences() -> None:
    segment, copied = Reversal(symbols=6).training(5).at(2), CopyMemory(symbols=6).training(5).at(2)
    assert segment.inputs.tolist() == copied.inputs[:, :6].tolist()
    assert segment.targets.tolist() == [row[::-1] for row in segment.inputs.tolist()]
    assert segment.starts
