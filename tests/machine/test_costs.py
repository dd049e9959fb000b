"""Steps of growing size: the sizes, the limits, and that a smaller step foretells a larger one's bytes."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibria.configuration import Recipe
from equilibria.configuration.building import build_model
from equilibria.data.batches import ZipfBatches
from equilibria.machine.costs import Measurements, StepSize, ladder, measure
from equilibria.models import TokenModel
from equilibria.training.loop import TrainingLoop
from tiny import tiny_recipe

PLENTY = (60.0, 2**40)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 400), st.integers(1, 32))
def test_a_ladder_grows_from_a_short_row_to_the_whole_and_at_most_doubles(
    micro_batches: int, rows: int, length: int, shortest: int
) -> None:
    whole = StepSize(micro_batches, rows, length)
    sizes = ladder(whole, shortest)
    assert sizes[-1] == whole
    assert (sizes[0].micro_batches, sizes[0].rows) == (1, 1)
    assert sizes[0].length <= max(shortest, 1) or length <= shortest
    for smaller, larger in pairwise(sizes):
        assert smaller.tokens < larger.tokens <= 2 * smaller.tokens


def test_a_shape_says_what_it_is() -> None:
    assert str(StepSize(1, 1, 16)) == "1 row of 16 tokens"
    assert str(StepSize(3, 2, 16)) == "3 micro-batches of 2 rows of 16 tokens"


def parts(tmp_path: Path, **training: Any) -> tuple[Recipe, TokenModel]:
    recipe = tiny_recipe(tmp_path)
    recipe = replace(recipe, training=replace(recipe.training, **training))
    torch.manual_seed(0)
    return recipe, build_model(recipe, 50)


def measured(tmp_path: Path, whole: StepSize, budget: tuple[float, int]) -> Measurements:
    recipe, model = parts(tmp_path)

    def batches(size: StepSize) -> ZipfBatches:
        return ZipfBatches(50, size.micro_batches * size.rows, size.length)

    return measure(model, recipe.training, batches, ladder(whole, 16), *budget, lambda _: None)


def test_with_time_the_whole_step_is_measured(tmp_path: Path) -> None:
    whole = StepSize(2, 4, 32)
    found = measured(tmp_path, whole, PLENTY)
    assert [cost.size for cost in found.costs] == ladder(whole, 16)
    assert found.stopped is None
    assert found.largest.tokens == whole.tokens
    assert found.largest.steps == 3
    recipe, model = parts(tmp_path, batch_size=4, segment_length=32, accumulation=2)
    loop = TrainingLoop(model, recipe.training, ZipfBatches(50, 8, 32))
    for _ in range(2):
        loop.step()
    held = sum(tensor.nbytes for memory in loop._memories if memory is not None for tensor in memory.flatten())
    assert found.largest.memory == held > 0


def test_what_is_scaled_is_what_would_have_been_measured(tmp_path: Path) -> None:
    """Rows are independent of each other: bytes grow on a line."""
    found = measured(tmp_path, StepSize(1, 8, 32), PLENTY)
    some = Measurements(found.costs[:-1], "time")
    assert some.scaled(lambda cost: cost.saved, 8 * 32) == found.largest.saved
    assert some.scaled(lambda cost: cost.peak, 8 * 32) == pytest.approx(found.largest.peak, rel=0.02)
    first = Measurements(found.costs[:1], "time")
    assert first.scaled(lambda cost: cost.saved, 3 * found.costs[0].size.tokens) == 3 * found.costs[0].saved


def test_without_time_the_smallest_is_tried_alone(tmp_path: Path) -> None:
    found = measured(tmp_path, StepSize(1, 8, 32), (0.0, 2**40))
    assert ([cost.size for cost in found.costs], found.stopped) == ([StepSize(1, 1, 16)], "time")
    assert found.largest.steps == 1


def test_nothing_is_tried_that_does_not_fit(tmp_path: Path) -> None:
    whole = StepSize(1, 8, 32)
    peaks = [cost.peak for cost in measured(tmp_path, whole, PLENTY).costs]
    found = measured(tmp_path, whole, (60.0, round(1.2 * peaks[2])))
    assert found.stopped == "memory"
    assert len(found.costs) == 3
