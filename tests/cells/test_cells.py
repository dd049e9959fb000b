"""What every transformer cell promises its depth; their equations are tested beside this."""

from __future__ import annotations

import pytest
import torch

from equilibria.cells import Cell, ContractiveCell, Memory, TransformerXLCell
from equilibria.models import LanguageModel
from equilibria.nn import SelfAttention, TiedEmbedding
from plain_loops import randomised
from three_blocks import three_blocks

SETTLING = {
    "contractive": lambda: ContractiveCell(d_model=8, heads=2, inner=12),
    "two blocks": lambda: ContractiveCell(d_model=8, heads=2, inner=12, blocks=2),
    "options": lambda: ContractiveCell(
        8, 2, 12, 2, norm="rms", query_key_norm=True, key_value_heads=1, activation="swiglu"
    ),
    "token carry": lambda: ContractiveCell(8, 2, 12, token_carry=1.0, injection_norm=True),
    "linear positions": lambda: ContractiveCell(8, 2, 12, 2, positions="linear", normalisation="weight"),
    "strict": lambda: ContractiveCell(8, 2, 12, 2, positions="linear", strict=True, slope_factor=16.0),
    "post norm": lambda: TransformerXLCell(d_model=8, heads=2, inner=12),
    "post norm, window": lambda: TransformerXLCell(8, 2, 12, window=3, normalisation="weight", affine=True),
}
"""Cells that small weights make contractions."""

READING_THE_MEMORY_AS_THE_WHOLE = SETTLING | {
    "pre norm": lambda: TransformerXLCell(d_model=8, heads=2, inner=12, norm_position="pre"),
    "transformer-xl": lambda: TransformerXLCell(d_model=8, heads=2, inner=12, injection=False, affine=True),
    "explicit": lambda: ContractiveCell(d_model=8, heads=2, inner=12, blocks=2, injection=False),
    "one of three blocks": lambda: three_blocks(d_model=8, heads=2, inner=12, blocks=1),
}
"""Cells to which a remembered token is what it was as a token of the same segment."""

CELLS = READING_THE_MEMORY_AS_THE_WHOLE | {
    # Each of its blocks reads the same memory, not what the block before has made of it.
    "three blocks": lambda: three_blocks(d_model=8, heads=2, inner=12, normalisation="weight"),
}


def seeded(build):
    torch.manual_seed(3)
    return randomised(build())


@pytest.mark.parametrize("remembers", [True, False], ids=["with memory", "without"])
@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_the_cell_is_causal_and_batch_invariant_exactly(build, remembers):
    cell = seeded(build).float()
    memory = Memory(tuple(torch.randn(3, 4, 8) for _ in range(cell.remembered))) if remembers else None
    # Exactly: each in memory of its own, where the same kernels compute them.
    z, inputs, changed_z, changed_inputs = (part.clone() for part in torch.randn(2, 3, 9, 8).repeat(2, 1, 1, 1))
    changed_z[1:, 5:], changed_inputs[1:, 5:] = 3.0, -2.0
    changed_z[0], changed_inputs[0] = -1.0, 2.0
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            one, two = cell.bind(inputs, memory)(z), cell.bind(changed_inputs, memory)(changed_z)
        assert torch.equal(one[1:, :5], two[1:, :5])
        assert not torch.equal(one[1:, 5:], two[1:, 5:])


@pytest.mark.parametrize("build", READING_THE_MEMORY_AS_THE_WHOLE.values(), ids=READING_THE_MEMORY_AS_THE_WHOLE.keys())
def test_one_evaluation_after_a_memory_is_the_end_of_the_whole(build):
    cell = seeded(build)
    z, inputs = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    whole = cell.bind(inputs)(z)
    states = cell.bind(inputs[:, :5]).remember(z[:, :5])
    assert len(states) == cell.remembered
    memory = Memory.join(None, states, limit=5)
    end = cell.bind(inputs[:, 5:], memory)(z[:, 5:])
    torch.testing.assert_close(end, whole[:, 5:], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_the_ways_with_and_without_gradients_agree(build):
    cell = seeded(build)
    inputs, z = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    bound = cell.bind(inputs)
    with torch.no_grad():
        without = bound(z)
    torch.testing.assert_close(bound(z), without, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("build", SETTLING.values(), ids=SETTLING.keys())
def test_a_segment_with_memory_continues_the_whole(build):
    # At a fixed point of the first part, the second sees it through the memory exactly as if solved together.
    cell = seeded(build)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.4)
    inputs = torch.randn(2, 8, 8, dtype=torch.float64)

    def settle(bound, length):
        z = torch.zeros(2, length, 8, dtype=torch.float64)
        for _ in range(300):
            z = bound(z)
        return z

    with torch.no_grad():
        whole = settle(cell.bind(inputs), 8)
        first_bound = cell.bind(inputs[:, :5])
        first = settle(first_bound, 5)
        memory = Memory.join(None, first_bound.remember(first), limit=5)
        second = settle(cell.bind(inputs[:, 5:], memory), 3)
    torch.testing.assert_close(second, whole[:, 5:], rtol=1e-6, atol=1e-6)


def test_memory_is_projected_once_per_solve(monkeypatch):
    cell = ContractiveCell(d_model=8, heads=2, inner=12, blocks=2)
    calls = 0
    original = SelfAttention._projected

    def counted(self, *arguments):
        nonlocal calls
        calls += 1
        return original(self, *arguments)

    monkeypatch.setattr(SelfAttention, "_projected", counted)
    memory = Memory((torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    bound = cell.bind(torch.randn(2, 4, 8), memory)
    z = torch.zeros(2, 4, 8)
    for _ in range(7):
        z = bound(z)
    assert calls == 2  # once per block, whatever the number of evaluations


@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_dropout_is_one_map_per_solve(build):
    cell = build()
    cell.dropout = 0.5
    cell.train()
    inputs, z = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    bound = cell.bind(inputs)
    assert torch.equal(bound(z), bound(z))
    assert not torch.equal(bound(z), cell.bind(inputs)(z))


def test_joining_memories_keeps_the_last_and_is_detached():
    new = (torch.arange(6.0).reshape(1, 3, 2).requires_grad_(),)
    first = Memory.join(None, new, limit=5)
    assert first is not None
    second = Memory.join(first, new, limit=5)
    assert second is not None
    assert second.length == 5
    assert not second.states[0].requires_grad
    assert second.states[0][0, :, 0].tolist() == [2.0, 4.0, 0.0, 2.0, 4.0]
    assert Memory.join(first, new, limit=0) is None
    assert torch.equal(Memory.unflatten(second.flatten()).states[0], second.states[0])


def test_the_smallest_cell_has_a_width_and_an_evaluation():
    class Leaky(Cell):
        def __init__(self):
            super().__init__()
            self.d_model, self.linear = 8, torch.nn.Linear(8, 8)

        def evaluate(self, z_BLD, inputs_BLD, past):
            return torch.tanh(0.1 * self.linear(z_BLD) + inputs_BLD)

    torch.manual_seed(0)
    model = LanguageModel(TiedEmbedding(11, 8), Leaky(), memory_length=3)
    tokens = torch.arange(12).view(2, 6) % 11
    output = model(tokens, tokens)
    output.loss.backward()
    gradient = model.get_parameter("cell.linear.weight").grad
    assert gradient is not None
    assert gradient.any()
    assert [state.shape for state in output.memory.states] == [(2, 3, 8)]
    assert model(tokens, memory=output.memory).solution is not None
    assert model.generate(tokens, 3, temperature=0.0).shape == (2, 9)


def test_a_cell_that_computes_nothing_is_an_error():
    class Empty(Cell):
        d_model = 8

    bound = Empty().bind(torch.zeros(1, 2, 8))
    with pytest.raises(NotImplementedError, match="Empty defines neither evaluate nor bind"):
        bound(torch.zeros(1, 2, 8))
