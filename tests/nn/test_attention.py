"""Attention and positions against plain loops in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from equilibria.nn import SelfAttention, causal_mask, relative_shift
from equilibria.nn.attention import KeysValuesApart, KeysValuesRoom, Place
from equilibria.nn.positions import Rotation, distance_embedding, linear_biases


def attention_by_loops(module: SelfAttention, states: torch.Tensor, queries_from: int) -> torch.Tensor:
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
    module = SelfAttention(8, 2).double()
    states = torch.randn(2, 7, 8, dtype=torch.float64)
    bound = module.bind(module.pattern(states[:, 3:], Place(3)), states[:, :3])
    torch.testing.assert_close(bound(states[:, 3:]), attention_by_loops(module, states, 3))


def test_attention_without_memory_equals_plain_loops():
    torch.manual_seed(0)
    module = SelfAttention(8, 2).double()
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    bound = module.bind(module.pattern(states, Place()))
    assert bound.pattern.mask is None  # the fused kernels' own causality
    torch.testing.assert_close(bound(states), attention_by_loops(module, states, 0))


@torch.no_grad()
def test_attention_of_a_set_is_that_of_pytorch():
    torch.manual_seed(0)
    module, states = SelfAttention(12, 3, positions="none", causal=False).double(), torch.randn(2, 7, 12).double()
    theirs = nn.MultiheadAttention(12, 3, bias=False, batch_first=True).double()
    theirs.in_proj_weight.copy_(module.queries_keys_values.weight)
    theirs.out_proj.weight.copy_(module.output.weight)
    found = module.bind(module.pattern(states, Place()))(states)
    torch.testing.assert_close(found, theirs(states, states, states, need_weights=False)[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"positions": "linear"},
        {"positions": "linear", "slope_factor": 64.0},
        {"positions": "rotary"},
        {"positions": "grid", "columns": 3},
        {"positions": "grid", "columns": 6, "key_value_heads": 1, "query_key_norm": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_attention_without_a_direction_equals_plain_loops(options):
    torch.manual_seed(0)
    module, states = SelfAttention(16, 2, causal=False, **options).double(), torch.randn(2, 6, 16).double()
    size, groups, columns = 8, module.key_value_heads, module.columns
    q, k, v = (states @ module.queries_keys_values.weight.mT).split([16, size * groups, size * groups], dim=-1)

    def turned(x: torch.Tensor, cell: int, gain: torch.Tensor | None) -> torch.Tensor:
        """By `position · base^(−2i/size)`, each pair of features."""
        if gain is not None:
            x = x / x.square().mean().sqrt() * gain
        pairs = torch.view_as_complex(x.view(-1, 2))
        angles = [cell * 10_000.0 ** (-i / 4) for i in range(4)]
        if columns is not None:
            angles = [along * 100.0 ** (-i / 2) for along in divmod(cell, columns) for i in range(2)]
        angles = torch.tensor([0.0] * 4 if module.positions == "linear" else angles, dtype=torch.float64)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()

    def slope(head: int) -> float:
        return options.get("slope_factor", 1.0) * 2.0 ** (-4 * (head + 1))

    expected = torch.zeros_like(states)
    for b in range(2):
        for h in range(2):
            mine, theirs = slice(h * size, (h + 1) * size), slice(h * size, (h + 1) * size) if groups > 1 else slice(8)
            for t in range(6):
                query = turned(q[b, t, mine], t, module.query_gain)
                scores = [query @ turned(k[b, s, theirs], s, module.key_gain) / size**0.5 for s in range(6)]
                if module.positions == "linear":
                    scores = [score - slope(h) * abs(t - s) for s, score in enumerate(scores)]
                expected[b, t, mine] = torch.stack(scores).softmax(0) @ v[b, :, theirs]
    found = module.bind(module.pattern(states, Place()))(states)
    torch.testing.assert_close(found, expected @ module.output.weight.mT)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 400), st.integers(0, 400))
def test_scores_in_a_grid_know_distances_by_row_and_by_column_alone(height, width, down, right):
    """A block of cells has the same scores wherever it is, also in a wider grid."""
    queries, keys = torch.randn(2, height * width, 1, 8, generator=torch.Generator().manual_seed(0)).double()

    def scores(columns: int, down: int, right: int) -> torch.Tensor:
        row, column = torch.meshgrid(torch.arange(height) + down, torch.arange(width) + right, indexing="ij")
        rotation = Rotation.of_grid((row * columns + column).flatten(), columns, 8, torch.float64)
        return rotation.apply(queries).flatten(1) @ rotation.apply(keys).flatten(1).mT

    torch.testing.assert_close(scores(width + right, down, right), scores(width, 0, 0), rtol=0, atol=1e-9)


def test_neighbours_by_row_and_by_column_are_told_apart():
    same = torch.ones(9, 1, 8, dtype=torch.float64)
    turned = Rotation.of_grid(torch.arange(9), 3, 8, torch.float64).apply(same).flatten(1)
    scores = turned @ turned.mT
    torch.testing.assert_close(scores[0, 1], scores[4, 5])
    torch.testing.assert_close(scores[0, 3], scores[4, 7])
    # 2 and 3 follow each other in the sequence, and are far apart in the grid.
    assert abs(float(scores[2, 3] - scores[0, 1])) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "grid", "causal": False}, 'go together; found positions = "grid", columns = None'),
        ({"columns": 3}, 'go together; found positions = "rotary", columns = 3'),
        ({"positions": "grid", "columns": 3}, """positions = "grid" needs causal = false"""),
        ({"positions": "grid", "columns": 0, "causal": False}, "columns must be at least 1, found 0"),
        (
            {"positions": "grid", "columns": 3, "causal": False, "heads": 4},
            "a multiple of 4 · heads for grid positions",
        ),
    ],
)
def test_an_impossible_grid_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention(**({"d_model": 8, "heads": 2} | options))


def test_tokens_that_all_see_each_other_have_no_past_no_padding_and_whole_rows():
    module, states = SelfAttention(8, 2, positions="grid", causal=False, columns=3), torch.zeros(2, 6, 8)
    for place in (Place(past=1), Place(present_BS=torch.ones(2, 6, dtype=torch.bool))):
        with pytest.raises(ValueError, match="no memory, no padding"):
            module.pattern(states, place)
    with pytest.raises(ValueError, match="a grid of 3 columns has whole rows; found 5 tokens"):
        module.pattern(states[:, :5], Place())


@torch.no_grad()
@pytest.mark.parametrize("lowered", [False, True])
def test_tokens_over_a_buffer_are_those_of_the_segment_under_autocast_too(lowered):
    torch.manual_seed(0)
    module, states = SelfAttention(8, 2), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        room = KeysValuesRoom(*torch.zeros(2, 2, 2, 5, 4), past=0)
        bound = module.bind(module.pattern(states, Place()), room)
        whole = bound(states)
        tokens_T = torch.tensor([3, 1])
        found = bound.at(1, tokens_T)(states[1:, tokens_T])
    tolerance = 0.02 if lowered else 1e-5
    torch.testing.assert_close(found[0], whole[1, tokens_T], rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
def test_a_token_apart_sees_what_it_sees_behind_its_past(key_value_heads):
    torch.manual_seed(0)
    module = SelfAttention(16, 4, key_value_heads, query_key_norm=True, query_key_gain=2.0).double()
    x, own = torch.randn(1, 1, 16, dtype=torch.float64), []
    keys, values = torch.randn(2, 1, key_value_heads, 7, 4, dtype=torch.float64)
    pattern = module.pattern(x, Place(6))
    apart = module.bind(pattern, KeysValuesApart(keys[:, :, :6], values[:, :, :6], own))
    behind = module.bind(pattern, KeysValuesRoom(keys, values, 6))
    torch.testing.assert_close(apart(x), behind(x))
    torch.testing.assert_close(own, [keys[:, :, 6:], values[:, :, 6:]])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("normalisation", ["none", "weight"])
def test_the_gain_multiplies_queries_and_keys_at_the_start_and_nothing_else(normed, normalisation):
    def built(gain: float) -> tuple[SelfAttention, torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        module = SelfAttention(12, 3, 1, "none", normed, normalisation, gain)
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
        SelfAttention(8, 2, query_key_gain=0.0)


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
        assert biases[head, 0, 3:].tolist() == [0.0, -slope]


def test_distance_embedding_counts_down_to_zero():
    table = distance_embedding(4, 6, torch.zeros(1))
    assert table.shape == (4, 6)
    torch.testing.assert_close(table[-1], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(table[0, 0], torch.sin(torch.tensor(3.0)))
