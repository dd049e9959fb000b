"""A stack of cells: its equations, its memory layer by layer, and what remembering costs."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import equilibria as eq
from equilibria.cells import Cell, ContractiveCell, Memory, StackedCell, TransformerXLCell, TrellisCell
from equilibria.cells.stack import StackedMap
from equilibria.cells.transformer_xl import share_position_biases
from equilibria.depths import UnrolledDepth
from layers import AveragingLayer, by_loops


def stack(layers: int, tied: bool = False, injection: bool = False, width: int = 3) -> StackedCell:
    torch.manual_seed(layers)
    first = AveragingLayer(width, injection).double()
    return StackedCell([first if tied else AveragingLayer(width, injection).double() for _ in range(layers)])


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 4),
    batch=st.integers(1, 2),
    length=st.integers(1, 4),
    past=st.integers(0, 3),
    tied=st.booleans(),
    injection=st.booleans(),
)
@torch.no_grad()
def test_a_stack_is_its_layers_one_after_another(layers, batch, length, past, tied, injection):
    cell = stack(layers, tied, injection)
    inputs = torch.randn(batch, length, 3, dtype=torch.float64)
    memory = Memory(tuple(torch.randn(batch, past, 3, dtype=torch.float64) for _ in range(layers)))
    bound, z = cell.bind(inputs, memory), cell.initial_state(inputs)
    found, remembered = bound(z), bound.remember(z)
    expected, entered = torch.zeros_like(inputs) if injection else inputs, []
    for layer, state in zip(cell.cells, memory.states, strict=True):
        assert isinstance(layer, AveragingLayer)
        entered.append(expected)
        expected = by_loops(layer, expected, inputs, state)
    torch.testing.assert_close(found, expected)
    for one, two in zip(remembered, entered, strict=True):
        torch.testing.assert_close(one, two)


def test_tokens_are_separable_where_those_of_every_layer_are():
    attending, gated = ContractiveCell(8, 2, 12), TrellisCell(8, 4)
    assert StackedCell([attending, TransformerXLCell(8, 2, 12)]).separable
    assert not StackedCell([gated]).separable
    assert not StackedCell([attending, StackedCell([attending, gated])]).separable


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    tied=st.booleans(),
    injection=st.booleans(),
    seed=st.integers(0, 9),
)
@torch.no_grad()
def test_segments_with_memory_are_one_long_segment_exactly(layers, cuts, tied, injection, seed):
    cell, depth = stack(layers, tied, injection), UnrolledDepth(1)
    inputs = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def read(part, memory):
        bound = cell.bind(part, memory)
        reached = depth.reach(bound, cell.initial_state(part), training=False)
        assert reached.argument is not None
        return reached.state, Memory.join(memory, bound.remember(reached.argument, latest=True), limit=9)

    whole, _ = read(inputs, None)
    memory, parts = None, []
    bounds = sorted({0, 9, *cuts})
    for start, end in pairwise(bounds):
        state, memory = read(inputs[:, start:end], memory)
        parts.append(state)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-13)


def test_remembering_where_it_was_evaluated_last_costs_no_evaluation_without_gradients():
    cell, inputs = stack(3), torch.randn(2, 5, 3, dtype=torch.float64)
    bound = cell.bind(inputs)
    bound(inputs)
    with torch.no_grad():
        known = bound.remember(inputs, latest=True)
        assert [layer.evaluations for layer in cell.cells] == [1, 1, 1]
        afresh = bound.remember(inputs)
    assert [layer.evaluations for layer in cell.cells] == [2, 2, 2]
    torch.testing.assert_close(known, afresh)  # computed again elsewhere in memory
    differentiable = bound.remember(inputs, latest=True)
    assert differentiable[1].requires_grad
    torch.testing.assert_close(known, differentiable)


def test_an_argument_that_is_gone_is_not_taken_for_another():
    bound = stack(2).bind(torch.randn(1, 4, 3, dtype=torch.float64))
    with torch.no_grad():
        for seed in range(20):  # freed memory is soon used again
            generator = torch.Generator().manual_seed(seed)
            bound(torch.randn(1, 4, 3, dtype=torch.float64, generator=generator))
            z = torch.randn(1, 4, 3, dtype=torch.float64, generator=generator)
            torch.testing.assert_close(bound.remember(z)[1], bound.layers[0](z))


def test_nothing_outlives_a_checkpointed_step(monkeypatch):
    # Recomputation holds on to the bound map, which must not hold on to the graph.
    cell, maps = stack(2, injection=True), []
    original = StackedCell.bind

    def watched(self: StackedCell, *arguments) -> StackedMap:
        bound = original(self, *arguments)
        maps.append(weakref.ref(bound))
        return bound

    monkeypatch.setattr(StackedCell, "bind", watched)

    def step(backward: bool) -> None:
        inputs = torch.randn(2, 5, 3, dtype=torch.float64)
        bound = cell.bind(inputs)
        depth = UnrolledDepth(3, checkpoint=True)
        reached = depth.reach(bound, cell.initial_state(inputs), training=True)
        if backward:
            reached.state.sum().backward()

    step(backward=True)
    step(backward=False)
    gc.collect()
    assert [reference() for reference in maps] == [None, None]


@torch.no_grad()
def test_a_stack_at_its_equilibrium_remembers_it_exactly():
    torch.manual_seed(0)
    cell = StackedCell([ContractiveCell(8, 2, 12), TransformerXLCell(8, 2, 12)]).double().eval()
    for parameter in cell.parameters():
        parameter.mul_(0.4)
    inputs, solver = torch.randn(2, 8, 8, dtype=torch.float64), eq.Anderson(tol=1e-11, max_evaluations=300)

    def solve(part, memory):
        bound = cell.bind(part, memory)
        solution = eq.fixed_point(bound, cell.initial_state(part), solver)
        return solution.value, Memory.join(memory, bound.remember(solution.value), limit=8)

    whole, _ = solve(inputs, None)
    first, memory = solve(inputs[:, :5], None)
    second, _ = solve(inputs[:, 5:], memory)
    assert memory is not None
    assert len(memory.states) == cell.remembered == 3
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-6, atol=1e-8)


def test_tied_layers_are_one_set_of_parameters_with_a_memory_each():
    tied, separate = stack(4, tied=True), stack(4)
    assert sum(p.numel() for p in separate.parameters()) == 4 * sum(p.numel() for p in tied.parameters())
    assert tied.remembered == separate.remembered == tied.layers_per_application == 4
    inputs = torch.randn(1, 3, 3, dtype=torch.float64)
    states = tied.bind(inputs).remember(inputs)
    assert not any(torch.equal(states[0], state) for state in states[1:])


@pytest.mark.parametrize("widths", [(), (4, 6)])
def test_layers_that_do_not_fit_are_an_error(widths):
    with pytest.raises(ValueError, match="one width"):
        StackedCell([AveragingLayer(width) for width in widths])


def test_layers_agree_on_their_grid_and_on_what_a_token_sees():
    def layer(columns: int | None = None, causal: bool = False) -> Cell:
        return ContractiveCell(
            8, 2, 12, causal=causal, positions="none" if columns is None else "grid", columns=columns
        )

    whole = StackedCell([layer(4), layer(), layer(4)])
    assert (whole.causal, whole.columns) == (False, 4)
    plain = StackedCell([layer(causal=True)] * 2)
    assert (plain.causal, plain.columns) == (True, None)
    with pytest.raises(ValueError, match=r"one grid; found columns \[4, 5\]"):
        StackedCell([layer(5), layer(4)])
    with pytest.raises(ValueError, match=r"all causal or none is; found \[True, False\]"):
        StackedCell([layer(causal=True), layer()])


def test_a_memory_of_another_stack_is_an_error():
    cell: Cell = stack(3)
    with pytest.raises(ValueError, match="2 tensors and the cells of this model remember 3"):
        cell.bind(torch.zeros(1, 2, 3), Memory((torch.zeros(1, 2, 3),) * 2))


def test_shared_biases_are_equal_ones_whose_gradients_add_up():
    def layers() -> list[TransformerXLCell]:
        torch.manual_seed(0)
        return [TransformerXLCell(8, 2, 12, injection=False, initial_std=0.5).double() for _ in range(3)]

    apart, shared = layers(), layers()
    share_position_biases(shared)
    inputs, losses = torch.randn(2, 5, 8, dtype=torch.float64), []
    names = ("content_bias", "distance_bias")
    with torch.no_grad():
        for cell in apart:
            for name in names:
                first = shared[0].blocks[0].get_parameter(f"attention.{name}")
                cell.blocks[0].get_parameter(f"attention.{name}").copy_(first)
    for cells in (apart, shared):
        cell = StackedCell(cells)
        losses.append(cell.bind(inputs)(inputs).square().mul(inputs).sum())
        losses[-1].backward()
    torch.testing.assert_close(*losses)  # weights elsewhere in memory may meet other kernels
    for name in names:
        gradients = [
            gradient
            for cell in apart
            if (gradient := cell.blocks[0].get_parameter(f"attention.{name}").grad) is not None
        ]
        assert len(gradients) == len(apart)
        found = shared[2].blocks[0].get_parameter(f"attention.{name}")
        assert found is shared[0].blocks[0].get_parameter(f"attention.{name}")
        torch.testing.assert_close(found.grad, torch.stack(gradients).sum(0))
        assert all(gradient.any() for gradient in gradients)
