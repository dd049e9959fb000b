"""Pairs of tokens against PyTorch's own convolution, the linear recurrence against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from equilibria.nn import normalised
from equilibria.nn.convolution import last, linear_recurrence, pairs

sizes = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 7), st.integers(0, 5), sizes)
def test_a_linear_layer_on_pairs_is_a_causal_convolution(batch, length, past, dilation):
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    sequence = torch.randn(batch, past + length, 3, dtype=torch.float64)
    before, now = sequence.split((past, length), dim=1)
    found = F.linear(pairs(now, last(before, dilation)), weight.permute(0, 2, 1).flatten(1), bias)
    expected = F.conv1d(F.pad(sequence.mT, (dilation, 0)), weight, bias, dilation=dilation).mT
    torch.testing.assert_close(found, expected[:, past:])


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 7), sizes)
def test_a_linear_recurrence_solves_its_equation(batch, length, delay):
    torch.manual_seed(1)
    decay, addition = torch.rand(2, batch, length, 3, dtype=torch.float64)
    history = torch.randn(batch, delay, 3, dtype=torch.float64)
    found = linear_recurrence(decay, addition, history)
    whole = torch.cat([history, found], dim=1)
    assert found.shape == (batch, length, 3)
    torch.testing.assert_close(found, decay * whole[:, :length] + addition, rtol=0, atol=1e-14)


def test_weight_norm_spans_both_taps_of_an_output():
    layer = normalised(nn.Linear(6, 4), "weight")
    direction = layer.get_parameter("parametrizations.weight.original1")
    before = layer.weight.detach().clone()
    with torch.no_grad():
        direction[1].mul_(5.0)  # the length of a direction does not count
        layer.get_parameter("parametrizations.weight.original0")[2].mul_(3.0)
    scale = torch.tensor([1.0, 1.0, 3.0, 1.0]).unsqueeze(1)
    torch.testing.assert_close(layer.weight, before * scale)


def test_spectral_norm_is_one():
    layer = normalised(nn.Linear(6, 4), "spectral")
    for _ in range(100):
        layer(torch.zeros(1, 6))
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, rel=1e-3)
