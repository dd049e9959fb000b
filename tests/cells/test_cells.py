"""The cells against independent float64 implementations, and what they promise their depth."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from equilibria.cells import ContractiveCell, Memory, PostNormCell
from equilibria.nn import RotaryAttention

CELLS = {
    "contractive": lambda: ContractiveCell(d_model=8, heads=2, inner=12),
    "two blocks": lambda: ContractiveCell(d_model=8, heads=2, inner=12, blocks=2),
    "post norm": lambda: PostNormCell(d_model=8, heads=2, inner=12),
}


def randomised(build):
    torch.manual_seed(3)
    cell = build().double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def post_norm_by_loops(cell: PostNormCell, z, inputs, memory_z, memory_inputs):
    """The published equations, token by token."""
    width, heads = cell.d_model, cell.heads
    size, past, length = width // heads, memory_z.shape[1], z.shape[1]
    states, embedded = torch.cat([memory_z, z], 1), torch.cat([memory_inputs, inputs], 1)
    qkv = states @ cell.queries_keys_values.weight.mT + embedded @ cell.inject.weight.mT + cell.inject.bias
    rows = []
    for b in range(z.shape[0]):
        for t in range(past, past + length):
            mixed = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                q, k, v = (qkv[b, :, c * width : (c + 1) * width][:, part] for c in range(3))
                scores = []
                for s in range(t + 1):
                    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
                    angle = (t - s) * frequencies
                    r = (torch.cat([angle.sin(), angle.cos()]) @ cell.distances.weight.mT)[part]
                    content = (q[t] + cell.content_bias[h]) @ k[s]
                    scores.append((content + (q[t] + cell.distance_bias[h]) @ r) / size**0.5)
                mixed.append(torch.stack(scores).softmax(0) @ v[: t + 1])
            a = F.layer_norm(states[b, t] + torch.cat(mixed) @ cell.output.weight.mT, (width,))
            expand, contract = cell.feed_forward.expand, cell.feed_forward.contract
            fed = torch.relu(a @ expand.weight.mT + expand.bias) @ contract.weight.mT + contract.bias
            rows.append(F.layer_norm(a + fed, (width,)))
    return torch.stack(rows).reshape(z.shape)


def test_post_norm_cell_equals_the_published_equations():
    cell = randomised(CELLS["post norm"])
    z, inputs = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    memory = Memory((torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)))
    found = cell(z, cell.context(inputs, memory))
    torch.testing.assert_close(found, post_norm_by_loops(cell, z, inputs, *memory.states), rtol=1e-5, atol=1e-6)


def test_contractive_cell_equals_its_equations():
    cell = randomised(CELLS["two blocks"])
    z, inputs = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    a = torch.sigmoid(cell.carry_logit)
    h = a * z + (1 - a) * (inputs @ cell.inject.weight.mT + cell.inject.bias)
    context = cell.context(inputs, None)
    for block in cell.blocks:
        h = h + block.attention(block.attention_norm(h), context.rotation, None, None)
        h = h + block.feed_forward(block.feed_forward_norm(h))
    torch.testing.assert_close(cell(z, context), cell.norm(h))


@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_the_carry_is_causal_exactly(build):
    cell = randomised(build).float()
    z, inputs = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    changed_z, changed_inputs = z.clone(), inputs.clone()
    changed_z[:, 5:], changed_inputs[:, 5:] = 3.0, -2.0
    one, two = cell(z, cell.context(inputs, None)), cell(changed_z, cell.context(changed_inputs, None))
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.equal(one[:, 5:], two[:, 5:])


@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_a_segment_with_memory_continues_the_whole(build):
    # At a fixed point of the first part, the second sees it through the memory exactly as if solved together.
    cell = randomised(build)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.4)
    inputs = torch.randn(2, 8, 8, dtype=torch.float64)

    def settle(context, length):
        z = torch.zeros(2, length, 8, dtype=torch.float64)
        for _ in range(300):
            z = cell(z, context)
        return z

    with torch.no_grad():
        whole = settle(cell.context(inputs, None), 8)
        first_context = cell.context(inputs[:, :5], None)
        first = settle(first_context, 5)
        memory = Memory.join(None, cell.remember(first, first_context), limit=5)
        second = settle(cell.context(inputs[:, 5:], memory), 3)
    torch.testing.assert_close(second, whole[:, 5:], rtol=1e-6, atol=1e-6)


def test_memory_is_projected_once_per_context(monkeypatch):
    cell = ContractiveCell(d_model=8, heads=2, inner=12, blocks=2)
    calls = 0
    original = RotaryAttention.remember

    def counted(self, *arguments):
        nonlocal calls
        calls += 1
        return original(self, *arguments)

    monkeypatch.setattr(RotaryAttention, "remember", counted)
    memory = Memory((torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    context = cell.context(torch.randn(2, 4, 8), memory)
    z = torch.zeros(2, 4, 8)
    for _ in range(7):
        z = cell(z, context)
    assert calls == 2  # once per block, whatever the number of evaluations


@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS.keys())
def test_dropout_is_one_map_per_solve(build):
    cell = build()
    cell.dropout = 0.5
    cell.train()
    inputs, z = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    context = cell.context(inputs, None)
    assert torch.equal(cell(z, context), cell(z, context))
    assert not torch.equal(cell(z, context), cell(z, cell.context(inputs, None)))


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


@pytest.mark.parametrize(
    "build", [lambda: ContractiveCell(d_model=10, heads=3), lambda: PostNormCell(d_model=9, heads=3)]
)
def test_sizes_that_do_not_divide_are_errors(build):
    with pytest.raises(ValueError, match="heads"):
        build()
