"""The depth of an ordinary network: which cell it is of, and what is wrong with others."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from equilibria.cells import Cell, StackedCell, TransformerXLCell
from equilibria.depths import Equilibrium, Stack, UnrolledDepth
from equilibria.models import LanguageModelRecipe
from equilibria.paper.halting import Halting
from layers import AveragingLayer


def arranged(depth: Any) -> tuple[Cell, list[bool]]:
    asked: list[bool] = []

    def make(injection: bool) -> Cell:
        asked.append(injection)
        return AveragingLayer(6, injection)

    return depth.arrange(make), asked


@pytest.mark.parametrize(("tied", "made"), [(False, 3), (True, 1)])
def test_layers_are_made_without_injection_and_each_applied_once(tied: bool, made: int) -> None:
    depth = Stack(3, tied)
    cell, asked = arranged(depth)
    assert isinstance(cell, StackedCell)
    assert asked == [False] * made
    assert len({id(layer) for layer in cell.cells}) == made
    inputs = torch.randn(2, 4, 6)
    bound = cell.bind(inputs)
    reached = depth.reach(bound, cell.initial_state(inputs), training=False)
    torch.testing.assert_close(reached.state, bound(inputs))
    assert reached.argument is inputs


def test_an_equilibrium_injects_and_halting_does_not() -> None:
    for depth, injected in ((Equilibrium(), True), (UnrolledDepth(2), True), (Halting(6), False)):
        cell, asked = arranged(depth)
        assert asked == [injected] == [cell.injection]


def test_halting_takes_the_width_of_its_cell_where_it_has_none() -> None:
    depth = Halting()
    with pytest.raises(ValueError, match="Halting has no features yet"):
        depth.ponder(torch.cos, torch.zeros(1, 2, 6))
    arranged(depth)
    assert depth.halt.in_features == 6
    with pytest.raises(ValueError, match="features must be the cell's 6, found 8"):
        arranged(Halting(8))


def test_a_recipe_holds_a_depth_with_weights_in_part() -> None:
    with pytest.raises(ValueError, match=r"depth is a Halting, .*; give partial\(Halting, \.\.\.\)"):
        LanguageModelRecipe(depth=Halting())
    recipe = LanguageModelRecipe(depth=partial(Halting))
    recipe.check()
    depths = [recipe.build(5).depth for _ in range(2)]
    assert all(isinstance(depth, Halting) and depth.halt.weight.device.type == "cpu" for depth in depths)
    assert depths[0] is not depths[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stack(0), "layers must be from 1 to 1000, found 0"),
        (lambda: Stack(2, tied=True, shared_biases=True), "shared_biases has no effect on tied layers"),
        (lambda: arranged(Stack(2, shared_biases=True)), "a AveragingLayer has no such biases"),
    ],
)
def test_impossible_options_are_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_layers_share_the_biases_of_their_attention() -> None:
    cell = Stack(3, shared_biases=True).arrange(lambda injection: TransformerXLCell(8, 2, 12, injection=injection))
    names = [name for name, _ in cell.named_parameters() if name.endswith("_bias")]
    assert names == ["cells.0.blocks.0.attention.content_bias", "cells.0.blocks.0.attention.distance_bias"]
