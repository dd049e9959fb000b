"""The chunked loss: the numbers of the plain one, without its memory."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from allocations import peak_bytes
from equilibria.nn import embedding
from equilibria.nn.embedding import chunked_cross_entropy


def drawn(positions: int, features: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(positions + features)
    shapes = ((positions, features), (vocabulary, features), (vocabulary,))
    hidden, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return hidden, weight, torch.randint(vocabulary, (positions,), generator=generator), bias


@settings(max_examples=30, deadline=None)
@given(
    positions=st.integers(1, 9),
    features=st.integers(1, 5),
    vocabulary=st.integers(1, 20),
    chunk=st.integers(1, 60),
    biased=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_the_loss_and_its_gradients_are_those_of_the_plain_formula(
    positions: int, features: int, vocabulary: int, chunk: int, biased: bool, reduction: Literal["mean", "sum"]
):
    hidden, weight, targets, bias = drawn(positions, features, vocabulary, torch.float64)
    targets[1::3] = -100
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(embedding._SCORES, "cpu", chunk)
        found = chunked_cross_entropy(hidden, weight, targets, bias if biased else None, reduction)
    scores = F.linear(hidden, weight, bias if biased else None)
    expected = F.cross_entropy(scores, targets, reduction=reduction)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(3 * found, inputs, retain_graph=True)
    again = torch.autograd.grad(3 * found, inputs)
    for one, two, three in zip(gradients, again, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(one, three)
        assert torch.equal(one, two)


def test_no_positions_and_no_targets():
    hidden, weight, targets, _ = drawn(4, 3, 5, torch.float32)
    nothing = chunked_cross_entropy(hidden[:0], weight, targets[:0], reduction="sum")
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) == 0.0
    assert chunked_cross_entropy(hidden, weight, torch.full((4,), -100)).isnan()


def test_memory_is_that_of_the_gradients_not_of_the_scores():
    hidden, weight, targets, bias = drawn(2048, 16, 20_000, torch.float32)
    scores, gradients = 2048 * 20_000 * 4, (2048 + 20_000) * 16 * 4
    plain = peak_bytes(lambda: F.cross_entropy(F.linear(hidden, weight, bias), targets).backward())
    chunked = peak_bytes(lambda: chunked_cross_entropy(hidden, weight, targets, bias).backward())
    assert plain > 2 * scores
    assert chunked < 2 * embedding._SCORES["cpu"] * 4 + 4 * gradients
    assert chunked < plain / 4


def test_under_autocast_the_sum_is_not_rounded_to_half_precision():
    hidden, weight, targets, _ = drawn(600, 8, 50, torch.float32)
    expected = chunked_cross_entropy(hidden.bfloat16().float(), weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_cross_entropy(hidden.bfloat16(), weight, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    found.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
