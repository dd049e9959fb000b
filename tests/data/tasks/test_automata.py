"""Fixed points of automata, beside their definition and all states of small rings."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import CellularAutomaton
from equilibria.data.batches import NO_TARGET
from equilibria.data.tasks.automata import settled
from equilibria.errors import UserError


def stepped(ring: tuple[int, ...], rule: int) -> tuple[int, ...]:
    """By the definition: the bit of the rule that the three bits spell."""
    code = format(rule, "08b")[::-1]
    return tuple(
        int(code[int(f"{ring[place - 1]}{ring[place]}{ring[(place + 1) % len(ring)]}", 2)])
        for place in range(len(ring))
    )


@pytest.mark.parametrize("width", range(3, 12))
def test_rule_78_rests_from_every_start(width: int) -> None:
    for start in product((0, 1), repeat=width):
        ring = start
        for _ in range(width - 1):
            ring = stepped(ring, 78)
        assert stepped(ring, 78) == ring
    every = np.arange(2**width)[:, None] >> np.arange(width) & 1
    _, rests = settled(every, 78, width - 1)
    assert bool(rests.all())


def test_rule_78_may_need_all_but_one_of_its_bits() -> None:
    every = np.arange(2**12)[:, None] >> np.arange(12) & 1
    assert not settled(every, 78, 10)[1].all()
    assert settled(every, 78, 11)[1].all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 255), st.lists(st.integers(0, 1), min_size=3, max_size=9), st.integers(0, 12))
def test_steps_are_those_of_the_definition(rule: int, start: list[int], steps: int) -> None:
    ring = tuple(start)
    for _ in range(steps):
        ring = stepped(ring, rule)
    ends, rests = settled(np.array([start]), rule, steps)
    assert rests.tolist() == [stepped(ring, rule) == ring]
    assert tuple(ends[0].tolist()) == ring or not rests[0]


@settings(deadline=None, max_examples=15)
@given(st.integers(5, 40), st.integers(0, 9), st.sampled_from([78, 110, 204]), st.integers(0, 99))
def test_targets_are_fixed_points_that_the_starts_lead_to(width: int, distractors: int, rule: int, seed: int) -> None:
    task = CellularAutomaton(rule=rule, width=width, distractors=distractors, samples=6, held_out=4, seed=seed)
    try:
        training, held = task.training(6).at(0), next(iter(task.split("valid").segments(4)))
    except UserError:  # from few starts only
        assert rule == 110
        return
    for segment in (training, held):
        assert segment.inputs.shape == segment.targets.shape == (len(segment.inputs), math.prod(task.grid))
        assert segment.answers is not None
        assert bool((segment.answers == (segment.targets != NO_TARGET)).all())
        assert segment.answers.sum(1).tolist() == [width] * len(segment.inputs)
        for row, target in zip(segment.inputs.tolist(), segment.targets.tolist(), strict=True):
            ring = tuple(row[:width])
            for _ in range(4 * width):
                ring = stepped(ring, rule)
            assert tuple(target[:width]) == ring == stepped(ring, rule)
            assert {*row[width:]} <= {2, 3}


@pytest.mark.parametrize("width", [8, 12, 24])
def test_splits_share_no_start_and_no_sequence_comes_twice_in_a_pass(width: int) -> None:
    """Of 256 and 4096 starts for 5000 sequences, and of more than enough."""
    task = CellularAutomaton(width=width)
    stream = task.training(400)
    passes = [torch.cat([stream.at(10 * number + index).inputs for index in range(10)]) for number in range(2)]
    held = torch.cat([segment.inputs for segment in task.split("valid").segments(300)])
    assert [len({tuple(row) for row in rows.tolist()}) for rows in (*passes, held)] == [4000, 4000, 1000]
    assert {tuple(row) for row in passes[0].tolist()} == {tuple(row) for row in passes[1].tolist()}
    assert not torch.equal(*passes)
    starts = [{tuple(row) for row in rows[:, :width].tolist()} for rows in (passes[0], held)]
    assert not starts[0] & starts[1]
    if width < 24:
        assert [len(found) for found in starts] == [round(2**width * share) for share in (0.8, 0.2)]


def test_distractors_are_spread_evenly_and_independent_of_the_ring() -> None:
    inputs = torch.cat([CellularAutomaton(width=8, seed=seed).training(4000).at(0).inputs for seed in range(9)]).numpy()
    for place in range(8, 16):
        assert abs(inputs[:, place].mean() - 2.5) < 6 * 0.5 / math.sqrt(36_000)
        for other in range(place):
            assert abs(np.corrcoef(inputs[:, place], inputs[:, other])[0, 1]) < 6 / math.sqrt(36_000)


def test_what_it_says_of_itself() -> None:
    task = CellularAutomaton()
    assert (task.directed, task.grid, task.name) == (False, (1, 20), "rule 78 on 12 bits")
    assert (task.vocabulary_size, CellularAutomaton(distractors=0).vocabulary_size) == (4, 2)
    assert task.tokenizer.encode("01 23") == [0, 1, 2, 3]
    assert task.tokenizer.decode([0, 1, 2, 3]) == "0123"
    (segment,) = task.split("valid").segments(1000)
    ones = float(segment.targets[:, :12].double().mean())
    assert task.yardsticks("valid") == {
        "chance_loss": pytest.approx(-ones * math.log(ones) - (1 - ones) * math.log(1 - ones)),
        "chance_accuracy": pytest.approx(max(ones, 1 - ones)),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 2}, "width must be at least 3, found 2"),
        ({"rule": 256}, "rule must be between 0 and 255, found 256"),
        ({"samples": 0}, "samples must be at least 1, found 0"),
        ({"distractors": -1}, "distractors must be at least 0, found -1"),
    ],
)
def test_impossible_automata_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellularAutomaton(**arguments)


def test_too_few_starts_that_come_to_rest_are_an_error() -> None:
    with pytest.raises(UserError, match="rule 110 on 12 bits comes to rest from 34 of 4096 starts, too few for 9000"):
        CellularAutomaton(rule=110, samples=8000).training(4).at(0)
    with pytest.raises(UserError, match="comes to rest from 4096 of 4096 starts, too few for 5000"):
        CellularAutomaton(distractors=0).training(4).at(0)
