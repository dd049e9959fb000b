"""Hops, beside the definition read word for word."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import HopInduction
from equilibria.data.tasks.hops import hopped


def by_definition(symbols: list[int], position: int, hops: int) -> int | None:
    """The largest j up to the position with the symbol before j equal to its own; positions count from 1, as there."""
    for _ in range(hops):
        found = [j for j in range(2, position + 1) if symbols[j - 2] == symbols[position - 1]]
        if not found:
            return None
        position = max(found)
    return symbols[position - 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 6))
def test_hops_are_those_of_the_definition(symbols: list[int], hops: int) -> None:
    """Of any symbols, also with repetitions."""
    found = hopped(np.array([symbols, symbols[::-1]]), hops, none=9)
    for row, given_row in zip(found.tolist(), (symbols, symbols[::-1]), strict=True):
        expected = [by_definition(given_row, position, hops) for position in range(1, len(symbols) + 1)]
        assert row == [9 if one is None else one for one in expected]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(3, 7), st.integers(10, 50), st.integers(2, 10), st.integers(10, 90))
def test_sequences(hops: int, alphabet: int, length: int, shortest: int, valid_length: int) -> None:
    task = HopInduction(
        hops=hops, alphabet=alphabet, length=length, shortest=shortest, valid_length=valid_length, held_out=5
    )
    training, held = task.training(4).at(3), next(iter(task.split("valid").segments(5)))
    assert shortest <= training.inputs.shape[1] <= length
    assert held.inputs.shape == (5, valid_length)
    for segment in (training, held):
        assert segment.answers is not None
        assert bool(segment.answers.all())
        assert bool((segment.inputs[:, 1:] != segment.inputs[:, :-1]).all())
        assert 0 <= int(segment.inputs.min()) <= int(segment.inputs.max()) < alphabet
        for row, targets in zip(segment.inputs.tolist(), segment.targets.tolist(), strict=True):
            expected = [by_definition(row, position, hops) for position in range(1, len(row) + 1)]
            assert targets == [alphabet if one is None else one for one in expected]


@pytest.mark.parametrize(("length", "valid_length"), [(6, None), (6, 12), (12, 6), (60, 100)])
def test_held_out_sequences_are_in_no_training(length: int, valid_length: int | None) -> None:
    task = HopInduction(alphabet=3, length=length, valid_length=valid_length, held_out=12)
    common = min(length, task.validated)
    held = {tuple(row[:common]) for segment in task.split("valid").segments(8) for row in segment.inputs.tolist()}
    trained = {tuple(row[:common]) for index in range(100) for row in task.training(11).at(index).inputs.tolist()}
    assert len(held) == 12
    assert len(trained) == min(1100, task.count - 12)
    assert not held & trained


def test_symbols_are_spread_evenly() -> None:
    task = HopInduction(length=30)
    symbols = np.concatenate([task.training(1000).at(index).inputs.numpy() for index in range(36)])
    for place in range(30):
        assert np.abs(np.bincount(symbols[:, place]) / 36_000 - 1 / 4).max() < 6 * math.sqrt(3 / 16 / 36_000)
    for place in range(29):  # of the pairs without a repetition, all are as frequent
        pairs = np.bincount(4 * symbols[:, place] + symbols[:, place + 1], minlength=16) / 36_000
        assert np.abs(pairs[pairs > 0] - 1 / 12).max() < 6 * math.sqrt(11 / 144 / 36_000)


def test_chance_knows_where_there_is_none() -> None:
    task = HopInduction(hops=3, length=40, held_out=500)
    (segment,) = task.split("valid").segments(500)
    logits = torch.full((500, 40, 5), -math.inf)
    none = segment.targets == 4
    logits[..., :4] = torch.where(none, -math.inf, 0.0).unsqueeze(-1)
    logits[..., 4] = torch.where(none, 0.0, -math.inf)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), segment.targets.flatten())
    known = task.yardsticks("valid")
    assert loss.item() == pytest.approx(known["chance_loss"], rel=1e-6)
    assert known["chance_accuracy"] == pytest.approx(float(none.double().mean()) * 3 / 4 + 1 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hops": 0}, "hops must be at least 1, found 0"),
        ({"hops": 20, "length": 20}, "hops = 20: none leads so far within 20 symbols; expected fewer"),
        ({"alphabet": 2}, "alphabet must be between 3 and 1000, found 2"),
        ({"length": 1}, "length must be at least 2, found 1"),
        ({"shortest": 101}, "shortest = 101: expected at most length, 100"),
        ({"alphabet": 3, "length": 4, "held_out": 8}, "held_out must be between 1 and 7, found 8"),
        ({"alphabet": 3, "length": 4, "held_out": 4, "samples": 5}, "samples must be between 1 and 4, found 5"),
    ],
)
def test_impossible_hops_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HopInduction(**arguments)
