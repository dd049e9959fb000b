"""Attention and positions against plain loops in float64."""

from __future__ import annotations

import pytest
import torch

from equilibria.nn import CausalAttention, causal_mask, relative_shift
from equilibria.nn.attention import KeysValuesRoom, Place
from equilibria.nn.positions import distance_embedding, linear_biases


def attention_by_loops(module: CausalAttention, states: torch.Tensor, queries_from: int) -> torch.Tensor:
    """Rotary causal attention of the rows from `queries_from` on, written from the formulas."""
    heads, size = module.heads, module.head_size
    batch, total, width = states.shape
    qkv = states @ module.queries_keys_values.weight.mT
    out = torch.zeros(batch, total - queries_from, width, dtype=states.dtype)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        y = x.clone()
        for i in range(size // 2):
            angle = torch.tensor(position * 10_000.0 ** (-2 * i / size), dtype=states.dtype)
            a, b = x[2 * i], x[2 * i + 1]
            y[2 * i], y[2 * i + 1] = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
        return y

    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (qkv[b, :, c * width : (c + 1) * width][:, part] for c in range(3))
            for t in range(queries_from, total):
                scores = torch.stack([turned(q[t], t) @ turned(k[s], s) / size**0.5 for s in range(t + 1)])
                out[b, t - queries_from, part] = scores.softmax(0) @ v[: t + 1]
    return out @ module.output.weight.mT


def test_attention_with_memory_equals_plain_loops():
    torch.manual_seed(0)
    module = CausalAttention(8, 2).double()
    states = torch.randn(2, 7, 8, dtype=torch.float64)
    bound = module.bind(module.pattern(states[:, 3:], Place(3)), states[:, :3])
    torch.testing.assert_close(bound(states[:, 3:]), attention_by_loops(module, states, 3))


def test_attention_without_memory_equals_plain_loops():
    torch.manual_seed(0)
    module = CausalAttention(8, 2).double()
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    bound = module.bind(module.pattern(states, Place()))
    assert bound.pattern.mask is None  # the fused kernels' own causality
    torch.testing.assert_close(bound(states), attention_by_loops(module, states, 0))


@torch.no_grad()
@pytest.mark.parametrize("lowered", [False, True])
def test_tokens_over_a_buffer_are_those_of_the_segment_under_autocast_too(lowered):
    torch.manual_seed(0)
    module, states = CausalAttention(8, 2), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        room = KeysValuesRoom(*torch.zeros(2, 2, 2, 5, 4))
        bound = module.bind(module.pattern(states, Place()), room)
        whole = bound(states)
        tokens_T = torch.tensor([3, 1])
        found = bound.at(1, tokens_T)(states[1:, tokens_T])
    tolerance = 0.02 if lowered else 1e-5
    torch.testing.assert_close(found[0], whole[1, tokens_T], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("normalisation", ["none", "weight"])
def test_the_gain_multiplies_queries_and_keys_at_the_start_and_nothing_else(normed, normalisation):
    def built(gain: float) -> tuple[CausalAttention, torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        module = CausalAttention(12, 3, 1, "none", normed, normalisation, gain)
        return module, module.queries_keys_values.weight.detach(), torch.rand(())

    (plain, weight, drawn), (sharp, sharp_weight, drawn_too) = built(1.0), built(3.0)
    assert drawn == drawn_too
    rows = torch.full((20, 1), 1.0)
    if normed:
        assert plain.query_gain is not None
        assert sharp.query_gain is not None
        assert sharp.key_gain is not None
        assert torch.equal(plain.query_gain, torch.ones(4))
        assert torch.equal(sharp.query_gain, torch.full((4,), 3.0))
        assert torch.equal(sharp.key_gain, torch.full((4,), 3.0))
    else:
        rows[:16] = 3.0  # three heads of queries and one of keys, four features each; the values follow
    torch.testing.assert_close(sharp_weight, weight * rows)
    torch.testing.assert_close(sharp.output.weight, plain.output.weight)  # a normalised one is computed


def test_an_impossible_gain_is_an_error():
    with pytest.raises(ValueError, match="query_key_gain"):
        CausalAttention(8, 2, query_key_gain=0.0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_causal_mask_sees_a_window_of_the_past(window, strict):
    mask = causal_mask(3, 4, torch.device("cpu"), window, strict)
    for i in range(3):
        for j in range(7):
            distance = 4 + i - j
            assert mask[i, j] == (distance >= strict and (window is None or distance < window))


def test_strict_padding_sees_nothing_and_is_not_seen():
    present_BS = torch.tensor([[True, True, True], [False, True, True]])
    mask = Place(0, present_BS=present_BS).mask(3, torch.device("cpu"), strict=True)
    assert mask is not None
    expected = torch.tensor([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    assert torch.equal(mask[:, 0], expected)


def test_relative_shift_moves_scores_by_distance_to_their_keys():
    length, total = 3, 5
    by_distance = torch.cat([torch.tensor([99.0]), torch.arange(total - 1, -1, -1.0)])
    shifted = relative_shift(by_distance.expand(1, 1, length, total + 1).contiguous())[0, 0]
    for i in range(length):
        for j in range(total - length + i + 1):
            assert shifted[i, j] == total - length + i - j


def test_linear_biases_fall_with_distance_by_a_slope_per_head():
    biases = linear_biases(4, 2, 3, torch.zeros(1))
    assert biases.shape == (4, 2, 5)
    assert torch.equal(linear_biases(4, 2, 3, torch.zeros(1), 16.0), 16.0 * biases)
    for head, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
        assert biases[head, 1].tolist() == [-4 * slope, -3 * slope, -2 * slope, -slope, 0.0]
        assert biases[head, 0, 3] == 0.0


def test_distance_embedding_counts_down_to_zero():
    table = distance_embedding(4, 6, torch.zeros(1))
    assert table.shape == (4, 6)
    torch.testing.assert_close(table[-1], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(table[0, 0], torch.sin(torch.tensor(3.0)))
