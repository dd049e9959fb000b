"""Words of groups, beside a group's own axioms and a second way to multiply."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import WordProblem
from equilibria.data.tasks.groups import multiplication, order_of

GROUPS = {"Z2": 2, "Z60": 60, "S3": 6, "S4": 24, "A4": 12, "A5": 60, "S5": 120}


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_is_that_of_a_group(group: str) -> None:
    table, order = multiplication(group), order_of(group)
    assert table.shape == (order, order) == (GROUPS[group],) * 2
    everything = np.arange(order)
    assert (table[0] == everything).all()
    assert (table[:, 0] == everything).all()
    assert (np.sort(table, axis=0) == everything[:, None]).all()  # inverses
    assert (np.sort(table, axis=1) == everything).all()
    assert (table[table] == table[:, table]).all()  # (ab)c = a(bc)


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_and_is_not_commutative(group: str) -> None:
    table = multiplication(group)
    assert (table == table.T).all() == group.startswith("Z")


def test_no_proper_quotient_of_a5_is_commutative() -> None:
    """Commutators make all of it, which is why no network of fixed depth follows it; those of S3 only half."""
    for group, expected in (("A5", 60), ("S5", 60), ("S3", 3), ("Z60", 1)):
        table = multiplication(group)
        inverse = np.argmin(table, axis=1)  # where the product is 0
        found = {
            int(table[table[a, b], table[inverse[a], inverse[b]]]) for a, b in product(range(len(table)), repeat=2)
        }
        while True:
            more = found | {int(table[a, b]) for a in found for b in found}
            if more == found:
                break
            found = more
        assert len(found) == expected


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(GROUPS)), st.integers(4, 40), st.integers(1, 4), st.integers(4, 80), st.integers(0, 99))
def test_targets_are_the_products_so_far(group: str, length: int, shortest: int, valid_length: int, seed: int) -> None:
    task = WordProblem(group=group, length=length, shortest=shortest, valid_length=valid_length, held_out=3, seed=seed)
    training, held = task.training(5).at(7), next(iter(task.split("valid").segments(3)))
    assert shortest <= training.inputs.shape[1] <= length
    assert held.inputs.shape == (3, valid_length)
    table = multiplication(group)
    for segment in (training, held):
        assert segment.inputs.dtype == segment.targets.dtype == torch.int64
        assert segment.answers is not None
        assert bool(segment.answers.all())
        for word, products in zip(segment.inputs.tolist(), segment.targets.tolist(), strict=True):
            so_far = 0
            for element, said in zip(word, products, strict=True):
                so_far = int(table[so_far, element])
                assert said == so_far


def test_lengths_of_training_are_all_there_and_a_function_of_the_index() -> None:
    task = WordProblem(group="S3", length=9, shortest=3)
    lengths = [task.training(2).at(index).inputs.shape[1] for index in range(100)]
    assert set(lengths) == set(range(3, 10))
    assert lengths == [task.training(2, 16).at(index).inputs.shape[1] for index in range(100)]
    assert task.length == 9


@pytest.mark.parametrize(("length", "valid_length"), [(6, None), (6, 9), (9, 6), (40, 100)])
def test_held_out_words_are_in_no_training(length: int, valid_length: int | None) -> None:
    task = WordProblem(group="Z2", length=length, valid_length=valid_length, held_out=20)
    common = min(length, task.validated)
    held = {tuple(row[:common]) for segment in task.split("valid").segments(8) for row in segment.inputs.tolist()}
    trained = {tuple(row[:common]) for index in range(200) for row in task.training(11).at(index).inputs.tolist()}
    assert len(held) == 20
    assert not held & trained


def test_elements_are_spread_evenly_and_independently() -> None:
    task = WordProblem(group="S3", length=30)
    words = np.concatenate([task.training(1000).at(index).inputs.numpy() for index in range(36)])
    for place in range(30):
        assert np.abs(np.bincount(words[:, place]) / 36_000 - 1 / 6).max() < 6 * math.sqrt(5 / 36 / 36_000)
    for one in range(30):
        for other in range(one):
            pairs = np.bincount(6 * words[:, one] + words[:, other], minlength=36) / 36_000
            assert np.abs(pairs - 1 / 36).max() < 6 * math.sqrt(35 / 36**2 / 36_000)


def test_chance_is_what_the_latest_element_tells() -> None:
    task = WordProblem(group="S3", length=8, held_out=4000)
    (segment,) = task.split("valid").segments(4000)
    logits = torch.zeros(4000, 8, 6)
    logits[:, 0] = -math.inf
    logits[:, 0].scatter_(1, segment.targets[:, :1], 0.0)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), segment.targets.flatten())
    known = task.yardsticks("valid")
    assert loss.item() == pytest.approx(known["chance_loss"], rel=1e-5)
    assert known["chance_accuracy"] == pytest.approx((1 + 7 / 6) / 8)
    # The product of the elements before is spread evenly, whatever the latest one is.
    shares = torch.bincount(6 * segment.inputs[:, 5] + segment.targets[:, 5], minlength=36) / 4000
    assert float((shares - 1 / 36).abs().max()) < 6 * math.sqrt(35 / 36**2 / 4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "Q8"}, 'group = \'Q8\': expected Z, S or A and a number, such as "Z60", "S3" or "A5"'),
        ({"group": "S7"}, "group = 'S7' has 5040 elements: expected from 2 to 1000"),
        ({"group": "S12"}, "expected Z, S or A"),
        ({"group": "A2"}, "group = 'A2' has 1 elements"),
        ({"shortest": 17}, "shortest = 17: expected at most length, 16"),
        ({"growing": 5}, "growing = 5 needs a length to begin with; give shortest"),
        ({"staying": 5}, "staying = 5 needs a length to begin with; give shortest"),
        ({"staying": -1, "shortest": 2}, "staying must be at least 0"),
        ({"growing": 0, "shortest": 2}, "growing must be at least 1"),
        ({"growth_power": 0.0, "growing": 5, "shortest": 2}, "growth_power must be above 0"),
        ({"growth_power": 2.0, "shortest": 2}, "growth_power = 2.0 needs lengths that grow; give growing"),
        ({"length": 0}, "length must be at least 1"),
        ({"group": "Z2", "length": 4, "held_out": 16}, "held_out must be between 1 and 15, found 16"),
    ],
)
def test_impossible_words_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordProblem(**arguments)


def test_the_longest_word_grows_with_the_batches() -> None:
    """From the shortest to the length, at a rate of which every batch knows its part; then it stays."""
    task = WordProblem(group="Z2", length=12, shortest=2, growing=100)
    lengths = [task.training(1).at(index).inputs.shape[1] for index in range(300)]
    for index, length in enumerate(lengths):
        assert 2 <= length <= min(12, 2 + round(0.1 * index))
    assert lengths[0] == 2
    assert max(lengths[90:110]) >= 10
    assert set(lengths[100:]) == set(range(2, 13))
    evenly = WordProblem(group="Z2", length=12, shortest=2)
    assert [evenly.training(1).at(index).inputs.shape[1] for index in range(100, 300)] == lengths[100:]
